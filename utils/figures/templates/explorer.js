// The table by dataset: filters, search, and what a click on a row opens. All texts of the data
// are set as text: none is ever read as HTML.
(() => {
  const holder = document.getElementById("explorer-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const table = document.getElementById("explorer");
  const body = table.tBodies[0];
  const headings = [...table.querySelectorAll("th")];
  const distinct = column => new Set(data.rows.map(row => row[column])).size;
  if (distinct("sae_id") < 2) {  // the same in each row
    headings.find(heading => heading.dataset.column === "sae_id").remove();
    document.getElementById("filter-sae_id").parentElement.hidden = true;
  }
  const columns = [...table.querySelectorAll("th")].map(heading => heading.dataset.column);
  const SVG = "http://www.w3.org/2000/svg";

  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
  const percent = value => `${(100 * value).toFixed(0)} %`;
  const shownCell = (row, column) => {
    const value = row[column];
    if (value === null || value === undefined) return "–";
    if (column === "rows") return value.toFixed(0) + (row.test_rows === "fresh" ? " fresh" : "");
    if (column === "width") return (row.exact ? "" : "≤ ") + value.toFixed(3);
    if (column === "difference") return (value > 0 ? "+" : "") + value.toFixed(3);
    return typeof value === "number" && column !== "k" ? value.toFixed(3) : String(value);
  };

  // one line chart of some contenders
  const chart = (series, title, xName, logarithmic) => {
    const [width, height, left, bottom, top, right] = [340, 210, 44, 36, 8, 12];
    const points = Object.values(series).flat();
    const placed = point => point[0] !== null && (!logarithmic || +point[0] > 0);
    const xs = [...new Set(points.filter(placed).map(point => +point[0]))].sort((a, b) => a - b);
    if (!xs.length) return null;
    const scale = x => (logarithmic ? Math.log2(x) : x);
    const [x0, x1] = [scale(xs[0]), scale(xs[xs.length - 1])];
    const ys = points.map(point => point[1]);
    const [y0, y1] = [Math.min(0.5, ...ys), Math.max(...ys, 0.55)];
    const px = x => left + (width - left - right) * (x1 > x0 ? (scale(x) - x0) / (x1 - x0) : 0.5);
    const py = y => height - bottom - (height - bottom - top) * ((y - y0) / (y1 - y0));
    const figure = make("figure", null, "chart");
    const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title});
    for (let i = 0; i <= 4; i++) {
      const y = y0 + ((y1 - y0) * i) / 4;
      svg.append(draw("line", {x1: left, x2: width - right, y1: py(y), y2: py(y), class: "grid"}),
                 draw("text", {x: left - 6, y: py(y) + 4, "text-anchor": "end"}, y.toFixed(2)));
    }
    let last = -Infinity;
    for (const x of xs) {
      if (px(x) - last < 30) continue;
      last = px(x);
      svg.append(draw("text", {x: px(x), y: height - bottom + 15, "text-anchor": "middle"},
                      String(+x.toPrecision(3))));
    }
    svg.append(draw("text", {x: (left + width) / 2, y: height - 4, "text-anchor": "middle"}, xName));
    const legend = make("div", null, "legend");
    for (const [name, all] of Object.entries(series)) {
      const look = data.looks[name] === "#000000" ? "currentColor" : data.looks[name];
      const level = all.length === 1 && all[0][0] === null;
      const line = level
        ? [[xs[0], all[0][1]], [xs[xs.length - 1], all[0][1]]]
        : all.filter(placed);
      if (!line.length) continue;
      svg.append(draw("polyline", {
        points: line.map(([x, y]) => `${px(+x)},${py(y)}`).join(" "),
        fill: "none", stroke: look, "stroke-width": 2, "stroke-dasharray": level ? "5 4" : "none",
      }));
      if (!level) line.forEach(([x, y]) => {
        const dot = draw("circle", {cx: px(+x), cy: py(y), r: 3, fill: look});
        dot.append(draw("title", {}, `${data.titles[name]}, ${x}: ${y.toFixed(3)}`));
        svg.append(dot);
      });
      const entry = make("span", data.titles[name]);
      const swatch = make("i");
      swatch.style.background = look;
      entry.prepend(swatch);
      legend.append(entry);
    }
    figure.append(make("figcaption", title), svg, legend);
    return figure;
  };

  const histogram = (card, classes) => {
    const [width, height] = [150, 44];
    const most = Math.max(1, ...card.counts.flat());
    const svg = draw("svg", {viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img",
      "aria-label": "values above zero in each class"});
    const n = card.counts[0].length;
    card.counts.forEach((counts, label) => counts.forEach((count, bin) => {
      const w = width / n / 2 - 1;
      const h = ((height - 4) * count) / most;
      const bar = draw("rect", {x: (bin * width) / n + label * (w + 1), y: height - h, width: w,
        height: h, class: `class${label}`});
      bar.append(draw("title", {}, `${classes[label]}: ${count} rows`));
      svg.append(bar);
    }));
    return svg;
  };

  const example = (one, classes) => {
    const item = make("li");
    item.append(make("span", `${one.kind}, labelled ${classes[one.label]}`, "kind"));
    const text = make("q", null, "text");
    text.dir = "auto";
    if (one.tokens.length) {
      const most = Math.max(...one.token_values.map(Math.abs), 1e-9);
      // a text that is cut says so
      const letters = text => text.replace(/\s/g, "").toLowerCase();
      const [whole, shown] = [letters(one.text), letters(one.tokens.join(""))];
      const begins = shown.startsWith("[cls]") || whole.startsWith(shown.slice(0, 8));
      if (!begins) text.append("… ");
      one.tokens.forEach((token, i) => {
        const value = one.token_values[i] / most;
        const mark = make("span", token);
        if (Math.abs(value) > 0.05) {
          mark.className = value > 0 ? "carries" : "against";
          mark.style.setProperty("--strength", Math.abs(value).toFixed(2));
          mark.title = one.token_values[i].toFixed(3);
        }
        text.append(mark);
      });
      const ends = shown.endsWith("[sep]") || whole.endsWith(shown.slice(-8));
      if (!ends) text.append(" …");
    } else text.textContent = one.text;
    item.append(text, make("span", `latent ${number(one.activation, 2)}, score ${number(one.score, 2)}`,
                           "soft"));
    return item;
  };

  const latentCard = (card, about) => {
    const section = make("section", null, "card");
    const title = make("h4", `Latent ${card.latent}`);
    if (about.neuronpedia) {
      const link = make("a", "Neuronpedia");
      link.href = `${about.neuronpedia}/${card.latent}`;
      link.rel = "noopener";
      title.append(" ", link);
    }
    const side = about.classes[card.speaks_for];
    const other = about.classes[1 - card.speaks_for];
    const fresh = card.test_auc_fresh === null ? "" : `, ${number(card.test_auc_fresh)} on fresh ones`;
    const facts = make("p", `Evidence for class ${side}. Alone: AUC ${number(card.test_auc)} on test rows`
      + `${fresh} (${number(card.train_auc)} on the rows that chose it). Active in`
      + ` ${percent(card.fires[card.speaks_for])} of class ${side} and`
      + ` ${percent(card.fires[1 - card.speaks_for])} of class ${other}. Weight ${number(card.weight)},`
      + ` ${percent(card.share)} of the score. Chosen in ${percent(card.chosen)} of redrawn training sets.`
      + (card.chosen_by_seeds === null ? "" : ` A latent of its direction is chosen in`
        + ` ${Math.round(card.chosen_by_seeds * about.other_seeds)} of ${about.other_seeds} SAEs of other seeds.`));
    const list = make("ul");
    card.examples.forEach(one => list.append(example(one, about.classes)));
    section.append(title);
    if (card.explanation) section.append(make("p", `Published explanation: ${card.explanation}`));
    section.append(facts);
    if (card.edges.length) section.append(histogram(card, about.classes));
    section.append(list);
    return section;
  };

  const detail = row => {
    const cell = document.createElement("td");
    cell.colSpan = columns.length;
    const inside = make("div", null, "inside");
    const charts = make("div", null, "charts");
    const curves = data.curves[row.dataset] || {};
    for (const [name, series] of Object.entries(curves)) {
      const byK = name === "by_k";
      const title = byK ? "normal: test AUC by k" : `${name}: test AUC`;
      const figure = chart(series, title, byK ? "k" : data.axes[name] || name, byK || name === "scarcity");
      if (figure) charts.append(figure);
    }
    inside.append(charts);
    const about = data.cards[row.dataset];
    if (about) {
      const other = row.k !== null && String(row.k) !== String(about.k)
        ? `The probe in the table uses ${row.k} latents, picked by validation AUC. Explained here is` : "Explained here is";
      inside.append(make("p", `${other} the probe on ${about.k} latents of ${about.sae_id} at`
        + ` ${about.hook_name}: normal setting, ${about.protocol} protocol, seed ${about.seed}, test AUC`
        + ` ${number(about.test_auc)} on all ${about.n_test} test rows. Below are the ${about.cards.length} of its`
        + ` ${about.n_latents} latents through which most of its score goes; the score is the probe's`
        + ` log-odds of class ${about.classes[1]}. Orange tokens raise the latent. Where a mean over tokens is`
        + " read, blue tokens lower it. Bars: how many test rows have each value above zero, orange for class"
        + ` ${about.classes[1]}, blue for class ${about.classes[0]}.`));
      const cards = make("div", null, "cards");
      about.cards.forEach(card => cards.append(latentCard(card, about)));
      inside.append(cards);
    } else inside.append(make("p", `No latent cards: ${data.explain} makes them.`, "soft"));
    cell.append(inside);
    const opened = make("tr", null, "detail");
    opened.append(cell);
    return opened;
  };

  const toggle = (element, row) => {
    const next = element.nextElementSibling;
    if (next && next.classList.contains("detail")) {
      next.remove();
      element.setAttribute("aria-expanded", "false");
      return;
    }
    element.after(detail(row));
    element.setAttribute("aria-expanded", "true");
  };

  const elements = data.rows.map(row => {
    const element = make("tr", null, "opens");
    columns.forEach(column => {
      const cell = make("td");
      shownCell(row, column).split("/").forEach((part, i) => {
        if (i) cell.append("/", make("wbr"));
        cell.append(part);
      });
      element.append(cell);
    });
    element.tabIndex = 0;
    element.setAttribute("aria-expanded", "false");
    element.onclick = () => toggle(element, row);
    element.onkeydown = event => {
      if (event.key !== "Enter") return;
      toggle(element, row);
    };
    body.append(element);
    return element;
  });

  const filters = ["setting", "words", "sae_id", "k"].map(column => {
    const select = document.getElementById(`filter-${column}`);
    const values = [...new Set(data.rows.map(row => row[column]).filter(value => value !== null))];
    values.sort((a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : 1));
    values.forEach(value => select.append(new Option(String(value), String(value))));
    select.onchange = () => apply();
    return [column, select];
  });
  const search = document.getElementById("search");
  const apply = () => {
    body.querySelectorAll("tr.detail").forEach(row => row.remove());
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    elements.forEach((element, i) => {
      const row = data.rows[i];
      element.setAttribute("aria-expanded", "false");
      element.hidden = !(row.dataset.toLowerCase().includes(wanted)
        && filters.every(([column, select]) => !select.value || String(row[column]) === select.value));
      if (!element.hidden) shown++;
    });
    document.getElementById("shown").textContent = `${shown} of ${elements.length} rows`;
  };
  search.oninput = apply;
  apply();

  const raw = document.getElementById("raw");
  raw.ontoggle = () => {
    if (raw.open) raw.querySelector("pre").textContent = JSON.stringify(data.rows, null, 1);
  };
})();
