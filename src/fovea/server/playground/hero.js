// The mosaic of the empty page: points as the cones of a retina lie, dense and sharp in the middle, where the fovea is.

import { svg } from "./dom.js";

const GOLDEN_ANGLE = Math.PI * (3 - Math.sqrt(5));
const POINTS = 260;

export function mosaic() {
  const points = Array.from({ length: POINTS }, (_, index) => {
    const far = (index + 0.5) / POINTS;
    const radius = 100 * far ** 0.78;
    const angle = index * GOLDEN_ANGLE;
    return svg("circle", {
      cx: (radius * Math.cos(angle)).toFixed(2),
      cy: (radius * Math.sin(angle)).toFixed(2),
      r: (0.9 + 1.9 * far).toFixed(2),
      opacity: (0.95 * (1 - far) ** 1.3 + 0.04).toFixed(3),
      class: far < 0.035 ? "spot" : "cone",
    });
  });
  return svg("svg", { class: "mosaic", viewBox: "-104 -104 208 208", "aria-hidden": "true" }, points);
}
