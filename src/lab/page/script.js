"use strict";
(() => {
  const root = document.documentElement;

  const theme = document.getElementById("theme");
  if (theme) {
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    });
  }

  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.classList.add("sortable");
      head.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.cells[column];
          return cell.dataset.v === undefined ? cell.textContent : cell.dataset.v === "" ? Infinity : Number(cell.dataset.v);
        };
        const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
        const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
        body.append(...rows);
      });
    });
  }

  // The browser's own hint comes late and cannot be styled: take its words over.
  const tip = document.body.appendChild(document.createElement("div"));
  tip.id = "tip";
  const hints = new Map();
  for (const title of document.querySelectorAll("figure svg title")) {
    hints.set(title.parentNode, title.textContent);
    title.remove();
  }
  const focus = document.head.appendChild(document.createElement("style"));
  const stand_out = (name) => {
    focus.textContent = name
      ? `figure [data-c]:not([data-c="${CSS.escape(name)}"]) { opacity: 0.12; }`
      : "";
  };
  document.addEventListener("pointerover", (event) => {
    const target = event.target.closest ? event.target.closest("figure [data-c], .legend [data-c]") : null;
    stand_out(target ? target.dataset.c : "");
    const words = target ? hints.get(target) : undefined;
    tip.style.display = words ? "block" : "none";
    if (words) tip.textContent = words;
  });
  document.addEventListener("pointermove", (event) => {
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8);
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  });
})();
