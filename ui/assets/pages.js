// The table of an exported dictionary: words narrow it down, a click on a heading sorts it.
(() => {
  const table = document.querySelector("table.index");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, text: row.textContent.toLowerCase() }));
  const found = document.getElementById("found");
  const show = (words) => {
    let n = 0;
    for (const entry of rows) {
      const fits = words.every((word) => entry.text.includes(word));
      entry.row.hidden = !fits;
      n += fits;
    }
    found.textContent = `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  };
  document.getElementById("words").addEventListener("input", (event) => {
    show(event.target.value.toLowerCase().split(/\s+/).filter(Boolean));
  });
  Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
    const key = (row) => row.cells[column].dataset.by;
    const sort = () => {
      const down = cell.getAttribute("aria-sort") !== "descending";
      const numeric = rows.every(({ row }) => key(row) === "" || !Number.isNaN(Number(key(row))));
      rows.sort((a, b) => {
        const [x, y] = [key(a.row), key(b.row)];
        const order = numeric ? Number(x || -Infinity) - Number(y || -Infinity) : x.localeCompare(y);
        return down ? -order : order;
      });
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows.map(({ row }) => row));
    };
    cell.querySelector("button").addEventListener("click", sort);
  });
  show([]);
})();
