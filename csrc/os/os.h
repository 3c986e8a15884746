/* All of what the engine asks of the operating system; to be replaced by what each file needs. */
#ifndef KSMPY_OS_H
#define KSMPY_OS_H

#include "base/pages.h"
#include "os/apart.h"
#include "os/clock.h"
#include "os/devices.h"
#include "os/direct_io.h"
#include "os/files.h"
#include "os/lease.h"
#include "os/map.h"
#include "os/maps.h"
#include "os/memory.h"
#include "os/numa.h"
#include "os/own.h"
#include "os/pagemap.h"
#include "os/probe.h"
#include "os/uffd.h"

#endif
