"use strict";
(() => {
  // Charts take their colours from the page, whichever scheme the reader has; paper is white.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = (night) => night
    ? { ink: "#c3cad4", line: "#4a545f" }
    : { ink: "#3d4653", line: "#ccd2d9" };
  const parts = {
    ink: ["axis_label_text_color", "major_label_text_color", "label_text_color"],
    line: ["axis_line_color", "major_tick_line_color", "grid_line_color"],
  };
  const paint = (night) => {
    const chosen = colours(night);
    for (const doc of window.Bokeh.documents)
      for (const model of doc._all_models.values())
        for (const [name, properties] of Object.entries(parts))
          for (const property of properties)
            if (property in model.properties && model[property] != null)
              model[property] = chosen[name];
  };
  const when_ready = (left) => {
    if (window.Bokeh && window.Bokeh.documents.length) {
      paint(dark.matches);
      document.documentElement.dataset.ready = "1";
    } else if (left > 0) {
      setTimeout(when_ready, 50, left - 1);
    }
  };
  when_ready(200);
  dark.addEventListener("change", () => paint(dark.matches));
  const closed = [];
  window.addEventListener("beforeprint", () => {
    paint(false);
    for (const part of document.querySelectorAll("details.map:not([open])")) {
      part.open = true;
      closed.push(part);
    }
  });
  window.addEventListener("afterprint", () => {
    paint(dark.matches);
    for (const part of closed.splice(0)) part.open = false;
  });
})();
