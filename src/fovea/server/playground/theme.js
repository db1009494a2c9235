// Dark or light before anything is painted: the stored choice, or else what the system prefers. Not a module: it has to
// run at once.

(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("fovea.theme");
    } catch {
      return null;
    }
  };
  const apply = () => {
    root.dataset.theme = stored() ?? (system.matches ? "dark" : "light");
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  root.addEventListener("fovea:theme", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      if (next === (system.matches ? "dark" : "light")) localStorage.removeItem("fovea.theme");
      else localStorage.setItem("fovea.theme", next);
    } catch {
      // Storage is closed to us: the choice then lasts as long as the page.
    }
    root.dataset.theme = next;
  });
})();
