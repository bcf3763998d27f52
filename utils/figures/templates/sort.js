// A click on a heading, or Enter on it, sorts its table.
document.querySelectorAll("table").forEach(table => {
  const headings = table.querySelectorAll("th");
  headings.forEach((heading, column) => {
    const value = row => {
      const text = row.cells[column].textContent.trim();
      const number = parseFloat(text);
      return isNaN(number) ? text : number;
    };
    const compare = (a, b) => {
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return a > b ? 1 : a < b ? -1 : 0;
    };
    const sort = () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const body = table.tBodies[0];
      [...body.rows]
        .sort((a, b) => compare(value(a), value(b)) * (up ? 1 : -1))
        .forEach(row => body.append(row));
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    };
    heading.tabIndex = 0;
    heading.onclick = sort;
    heading.onkeydown = event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    };
  });
});
