"use strict";
(() => {
  const root = document.documentElement;

  // Light and dark: what the system asks for, until the button is pressed.
  const stored = (value) => {
    try { // a page from a file may have no storage
      if (value !== undefined) localStorage.setItem("theme", value);
      return localStorage.getItem("theme");
    } catch { return null; }
  };
  const known = stored();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    stored(root.dataset.theme);
  });

  // Tables: a header sorts by its column, numbers by their value; what has none stays at the end.
  const key = (row, column) => {
    const cell = row.cells[column];
    const sort = cell.dataset.sort;
    return sort === "" ? null : sort === undefined ? cell.textContent.trim() : Number(sort);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const header = button.parentElement;
      const body = header.closest("table").tBodies[0];
      const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row, place) => ({row, place, key: key(row, header.cellIndex)}));
      rows.sort((a, b) => (a.key === null) - (b.key === null)
        || (a.key === null ? 0 : sign * compare(a.key, b.key)) || a.place - b.place);
      body.append(...rows.map((each) => each.row));
    });
  }

  // Pointing at a series picks it out in every figure.
  let picked = null;
  const pick = (number) => {
    if (number === picked) return;
    picked = number;
    for (const each of document.querySelectorAll(".on")) each.classList.remove("on");
    for (const svg of document.querySelectorAll("svg")) {
      const found = number === null ? [] : svg.querySelectorAll(".s" + number);
      svg.classList.toggle("picked", found.length > 0);
      for (const each of found) each.classList.add("on");
    }
    if (number !== null) for (const row of document.querySelectorAll(`tr[data-series="${number}"]`)) row.classList.add("on");
  };
  const numberOf = (target) => {
    const place = target.closest ? target.closest(".series, tr[data-series]") : null;
    if (!place) return null;
    return place.dataset.series || /\bs(\d+)\b/.exec(place.getAttribute("class"))[1];
  };
  document.addEventListener("mouseover", (event) => pick(numberOf(event.target)));

  // What is folded away is printed too.
  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
})();
