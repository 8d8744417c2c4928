// Shows the rows of the coverage table that hold every word of the search field.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const field = document.getElementById("coverage-search");
  if (!field) return;
  const count = document.getElementById("coverage-count");
  const rows = Array.from(document.querySelectorAll("#coverage tbody tr"), (row) => [row, row.textContent.toLowerCase()]);
  const search = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = shown === rows.length ? `${shown} models` : `${shown} of ${rows.length} models`;
  };
  field.addEventListener("input", search);
  search();
});
