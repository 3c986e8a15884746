"""The main job on real model weights, behind `ksmpy demo`; nothing else in ksmpy needs it."""

from __future__ import annotations
