// Tables: a click on a heading, or Enter on it, sorts; three buttons copy what is shown.
"use strict";

const makeSortable = table => {
  const headings = [...table.querySelectorAll("thead th")];
  headings.forEach(heading => {
    const value = row => {
      const text = row.cells[heading.cellIndex].textContent.trim();
      const number = parseFloat(text.replace(/^</, ""));
      return isNaN(number) ? text : number;
    };
    const compare = (a, b) => {
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return a > b ? 1 : a < b ? -1 : 0;
    };
    const sort = () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      const body = table.tBodies[0];
      body.querySelectorAll("tr.detail").forEach(row => {
        row.previousElementSibling.setAttribute("aria-expanded", "false");
        row.remove();
      });
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
};

const shownCells = table =>
  [...table.rows]
    .filter(row => !row.hidden && !row.classList.contains("detail"))
    .map(row => [...row.cells].map(cell => cell.textContent.trim().replace(/\s+/g, " ")));

const FORMATS = {
  Markdown: rows => {
    const line = cells => `| ${cells.map(cell => cell.replace(/\|/g, "\\|")).join(" | ")} |`;
    return [line(rows[0]), line(rows[0].map(() => "---")), ...rows.slice(1).map(line)].join("\n");
  },
  LaTeX: rows => {
    const signs = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"};
    const escaped = cell =>
      cell.replace(/[\\~^]|[&%$#_{}]/g, sign => signs[sign] || `\\${sign}`);
    const lines = rows.map(cells => `${cells.map(escaped).join(" & ")} \\\\`);
    const columns = "l" + "r".repeat(rows[0].length - 1);
    return [`\\begin{tabular}{${columns}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1),
            "\\bottomrule", "\\end{tabular}"].join("\n");
  },
  CSV: rows => {
    const quoted = cell => (/[",\n]/.test(cell) ? `"${cell.replace(/"/g, '""')}"` : cell);
    return rows.map(cells => cells.map(quoted).join(",")).join("\n");
  },
};

const copyText = async text => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page opened from a file may not write to the clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
};

const addCopyButtons = table => {
  const bar = document.createElement("div");
  bar.className = "copy";
  bar.append("Copy as ");
  for (const [name, format] of Object.entries(FORMATS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.onclick = async () => {
      await copyText(format(shownCells(table)));
      button.textContent = "copied";
      setTimeout(() => { button.textContent = name; }, 1200);
    };
    bar.append(button);
  }
  table.closest(".wide").after(bar);
};

document.querySelectorAll("table[data-name]").forEach(table => {
  makeSortable(table);
  addCopyButtons(table);
});

// a page that was sent alone still has its figures
document.querySelectorAll("a.png").forEach(link => {
  link.href = link.closest("figure").querySelector("img").src;
});
