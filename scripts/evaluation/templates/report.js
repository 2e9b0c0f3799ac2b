"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { names, multiLabel, images, sprites } = data;
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
  const count = (number) => number.toLocaleString("en");
  const imagesInWords = (number) => `${count(number)} image${number === 1 ? "" : "s"}`;

  // all text goes through textContent: a class name is never read as HTML
  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function drawing(tag, properties, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // ---- one tab stop for many items; arrow keys move among them
  function moveByKeys(container, items, columns) {
    container.addEventListener("keydown", (event) => {
      const list = items(), at = list.indexOf(document.activeElement);
      if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[event.key];
      const target = event.key === "Home" ? 0 : event.key === "End" ? list.length - 1 : at + step;
      if (!(target >= 0 && target < list.length)) return;
      event.preventDefault();
      list[target].focus();
    });
    container.addEventListener("focusin", (event) => {
      const list = items();
      if (list.includes(event.target)) for (const item of list) item.tabIndex = item === event.target ? 0 : -1;
    });
  }

  // ---- the curves
  const decimals = (step) => Math.max(0, Math.min(8, Math.ceil(-Math.log10(step) - 1e-9)));

  // ticks at round numbers, the first and the last of which hold all values between them
  function ticks(low, high) {
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
    const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
    return { step, values: Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step) };
  }

  function drawChart(title, series, format) {
    const epochs = data.history.epoch, last = epochs.length - 1;
    const shown = series.map(({ label, name }) => ({ label, values: data.history[name] }));
    const known = shown.flatMap(({ values }) => values.filter((value) => value !== null));
    const reading = make("p", { className: "reading" });
    const svg = drawing("svg", { class: "chart", tabindex: 0, role: "slider", "aria-label": `${title}, by epoch`, "aria-valuemin": epochs[0], "aria-valuemax": epochs[last] });
    const legend = shown.map(({ label }, index) => {
      const sample = drawing("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" }, drawing("path", { class: `line line-${index}`, d: "M0 5H28" }));
      return make("li", {}, sample, label);
    });
    find("#charts").append(make("figure", {}, make("figcaption", {}, title), make("ul", { className: "legend" }, ...legend), svg, reading));
    let lowest = Math.min(...known), highest = Math.max(...known);
    if (!known.length) [lowest, highest] = [0, 1];
    if (highest === lowest) [lowest, highest] = [lowest - Math.abs(lowest) / 2 - 1e-6, highest + Math.abs(highest) / 2 + 1e-6];
    const { step, values: marks } = ticks(lowest, highest), left = 52, top = 8, bottom = 192;
    const low = marks[0], high = marks[marks.length - 1];
    let selected = Math.max(0, epochs.indexOf(data.bestEpoch)), right = 400;
    const x = (at) => (last ? left + (at / last) * (right - left) : (left + right) / 2);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);

    function draw() {
      const width = svg.clientWidth || 420;
      right = width - 10;
      svg.setAttribute("viewBox", `0 0 ${width} 220`);
      const parts = marks.flatMap((mark) => [
        drawing("line", { class: "grid", x1: left, x2: right, y1: y(mark), y2: y(mark) }),
        drawing("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, format(mark, step)),
      ]);
      const every = Math.max(1, Math.ceil((last + 1) / Math.max(2, (right - left) / 56)));
      for (let at = 0; at <= last; at += every) parts.push(drawing("text", { x: x(at), y: 212, "text-anchor": "middle" }, String(epochs[at])));
      const best = epochs.indexOf(data.bestEpoch);
      parts.push(drawing("line", { class: "best", x1: x(best), x2: x(best), y1: top, y2: bottom }));
      shown.forEach(({ values }, index) => {
        let path = "", pen = "M";
        values.forEach((value, at) => {
          path += value === null ? "" : `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = value === null ? "M" : "L";
        });
        parts.push(drawing("path", { class: `line line-${index}`, d: path }));
      });
      parts.push(drawing("line", { class: "cursor", x1: x(selected), x2: x(selected), y1: top, y2: bottom }));
      shown.forEach(({ values }, index) => {
        if (values[selected] !== null) parts.push(drawing("circle", { class: `dot line-${index}`, cx: x(selected), cy: y(values[selected]), r: 4.5 }));
      });
      svg.replaceChildren(...parts);
    }

    function select(at) {
      selected = Math.max(0, Math.min(last, at));
      const texts = shown.map(({ label, values }) => `${label} ${values[selected] === null ? "undefined" : format(values[selected])}`);
      const text = `Epoch ${epochs[selected]}${epochs[selected] === data.bestEpoch ? " (best)" : ""}: ${texts.join(", ")}`;
      svg.setAttribute("aria-valuenow", epochs[selected]);
      svg.setAttribute("aria-valuetext", text);
      reading.textContent = text;
      draw();
    }

    svg.addEventListener("pointermove", (event) => {
      const place = event.clientX - svg.getBoundingClientRect().left;
      select(Math.round(((place - left) / (right - left)) * last));
    });
    svg.addEventListener("keydown", (event) => {
      const target = { ArrowRight: selected + 1, ArrowUp: selected + 1, ArrowLeft: selected - 1, ArrowDown: selected - 1, Home: 0, End: last }[event.key];
      if (target === undefined) return;
      event.preventDefault();
      select(target);
    });
    select(selected);
    new ResizeObserver(draw).observe(svg);
  }

  const plain = (value, step) => value.toFixed(step ? decimals(step) : 4);
  const shares = (value, step) => percent(value, step ? decimals(100 * step) : 2);
  const rates = (value, step) => (step ? String(+value.toPrecision(3)) : value.toExponential(2));
  drawChart("Loss", [{ label: "Training", name: "train_loss" }, { label: "Validation", name: "val_loss" }], plain);
  drawChart("Validation accuracy and AUC", [{ label: "Accuracy", name: "val_accuracy" }, { label: "AUC", name: "val_auc" }], shares);
  drawChart("Learning rate", [{ label: "First step of the epoch", name: "learning_rate" }], rates);

  // ---- the images
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const array = (Type, text) => new Type(bytes(text).buffer);
  const index = array(Uint32Array, images.index), right = bytes(images.right);
  const confidence = array(Float32Array, images.confidence);
  const scoreClasses = array(Uint32Array, images.classes), scores = array(Uint16Array, images.scores);
  const labelsOf = multiLabel ? bytes : (text) => array(Uint32Array, text);
  const truth = labelsOf(images.truth), predicted = labelsOf(images.predicted);
  const stride = Math.ceil(names.length / 8);
  const has = multiLabel
    ? (labels, image, label) => ((labels[image * stride + (label >> 3)] >> (label & 7)) & 1) === 1
    : (labels, image, label) => labels[image] === label;
  const labelsIn = (labels, image) => (multiLabel ? names.map((_, label) => label).filter((label) => has(labels, image, label)) : [labels[image]]);
  const inWords = (labels, image) => labelsIn(labels, image).map((label) => names[label]).join(", ") || "none";

  function sprite(image, side) {
    const { width, height, columns, perSheet } = sprites, scale = side / Math.max(width, height);
    const sheet = Math.floor(image / perSheet), place = image % perSheet;
    const rows = Math.ceil(Math.min(perSheet, sprites.count - sheet * perSheet) / columns);
    const node = make("span", { className: `sprite sheet${sheet}` });
    node.style.width = `${width * scale}px`;
    node.style.height = `${height * scale}px`;
    node.style.backgroundSize = `${columns * width * scale}px ${rows * height * scale}px`;
    node.style.backgroundPosition = `${-(place % columns) * width * scale}px ${-Math.floor(place / columns) * height * scale}px`;
    return node;
  }

  const PAGE = 160, THUMB = 56, LARGE = 224, SMALL = 112;
  const isNarrow = matchMedia("(max-width: 60rem)");
  const trueFilter = find("#filter-true"), predictedFilter = find("#filter-predicted");
  const outcomeFilter = find("#filter-outcome"), order = find("#order"), gallery = find("#gallery");
  let found = [], page = 0, current = -1;

  for (const select of [trueFilter, predictedFilter]) {
    select.append(make("option", { value: "" }, "all"), ...names.map((name, label) => make("option", { value: String(label) }, name)));
    // with several labels per image, those without a label can be chosen too
    if (multiLabel) select.append(...names.map((name, label) => make("option", { value: `!${label}` }, `not ${name}`)));
  }

  function matches(labels, image, wanted) {
    if (wanted === "") return true;
    return wanted[0] === "!" ? !has(labels, image, Number(wanted.slice(1))) : has(labels, image, Number(wanted));
  }

  function update() {
    const outcome = outcomeFilter.value, sign = { wrong: -1, most: -1, least: 1, index: 0 }[order.value];
    const wrongFirst = order.value === "wrong" ? (first, second) => right[first] - right[second] : () => 0;
    found = [];
    for (let image = 0; image < index.length; image++) {
      const fits = outcome === "" || (outcome === "right") === (right[image] === 1);
      if (fits && matches(truth, image, trueFilter.value) && matches(predicted, image, predictedFilter.value)) found.push(image);
    }
    found.sort((first, second) => wrongFirst(first, second) || sign * (confidence[first] - confidence[second]) || first - second);
    showPage(0);
    const wrong = found.filter((image) => !right[image]).length;
    find("#gallery-status").textContent = found.length ? `${imagesInWords(found.length)}, ${count(wrong)} of them wrong.` : "No image on this page is like that.";
  }

  function showPage(number) {
    const pages = Math.ceil(found.length / PAGE);
    page = Math.max(0, Math.min(number, pages - 1));
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    gallery.replaceChildren(...shown.map((image, at) => {
      const outcome = right[image] ? "right" : "wrong";
      const description = `Test image ${index[image]}, ${outcome}: true ${inWords(truth, image)}, predicted ${inWords(predicted, image)}, ${percent(confidence[image])}`;
      const button = make("button", { type: "button", className: `thumb ${outcome}`, "aria-label": description, title: description, tabIndex: at ? -1 : 0 }, sprite(image, THUMB));
      button.dataset.image = image;
      if (image === current) button.setAttribute("aria-current", "true");
      return make("li", {}, button);
    }));
    find("#page").textContent = pages > 1 ? `Page ${page + 1} of ${pages}` : "";
    // a button that is disabled would lose the focus
    find("#previous-page").setAttribute("aria-disabled", page === 0);
    find("#next-page").setAttribute("aria-disabled", page + 1 >= pages);
    find(".pager").classList.toggle("hidden", pages < 2);
  }

  function showDetail(image) {
    current = image;
    for (const thumb of all(".thumb")) {
      if (Number(thumb.dataset.image) === image) thumb.setAttribute("aria-current", "true");
      else thumb.removeAttribute("aria-current");
    }
    const trueOnes = labelsIn(truth, image), predictedOnes = labelsIn(predicted, image), kept = images.kept;
    const listed = Array.from({ length: kept }, (_, at) => image * kept + at).map((at) => ({ label: scoreClasses[at], score: scores[at] / 65535 }));
    const missing = trueOnes.filter((label) => !listed.some((one) => one.label === label));
    const rows = [...listed, ...missing.map((label) => ({ label, score: null }))].map(({ label, score }) => {
      const roles = [trueOnes.includes(label) && "true", predictedOnes.includes(label) && "predicted"].filter(Boolean).join(", ");
      const bar = make("i");
      bar.style.width = `${100 * (score ?? 0)}%`;
      const text = score === null ? `not among the ${kept} largest` : percent(score, 2);
      return make("tr", {}, make("th", { scope: "row" }, names[label], roles ? make("span", { className: "role" }, ` (${roles})`) : "", make("span", { className: "bar", "aria-hidden": "true" }, bar)), make("td", {}, text));
    });
    const outcome = right[image] ? "right" : "wrong";
    const table = make("table", {}, make("caption", {}, names.length > kept ? `The ${kept} largest probabilities` : "Probabilities"), make("tbody", {}, ...rows));
    const summary = make("div", {},
      make("h3", {}, `Test image ${index[image]}`),
      make("p", { className: `outcome ${outcome}` }, right[image] ? "✓ right" : "✗ wrong"),
      make("p", {}, `True: ${inWords(truth, image)}`),
      make("p", {}, `Predicted: ${inWords(predicted, image)}`),
    );
    find("#detail").replaceChildren(make("div", { className: "summary" }, sprite(image, isNarrow.matches ? SMALL : LARGE), summary), table);
  }

  const thumbs = () => all(".thumb");
  const columnsOfGallery = () => {
    const list = thumbs(), below = list.findIndex((thumb) => thumb.offsetTop > list[0].offsetTop + 8);
    return below < 0 ? list.length : below;
  };
  moveByKeys(gallery, thumbs, columnsOfGallery);
  gallery.addEventListener("click", (event) => {
    const thumb = event.target.closest(".thumb");
    if (thumb) showDetail(Number(thumb.dataset.image));
  });
  gallery.addEventListener("focusin", (event) => {
    // once an image is selected, the selection follows the arrow keys
    if (current >= 0 && event.target.matches(".thumb:focus-visible")) showDetail(Number(event.target.dataset.image));
  });
  find("#filters").addEventListener("change", update);
  find("#filters").addEventListener("submit", (event) => event.preventDefault());
  find("#filters").addEventListener("reset", () => setTimeout(update));
  find("#previous-page").addEventListener("click", () => showPage(page - 1));
  find("#next-page").addEventListener("click", () => showPage(page + 1));

  function showImages(wantedTrue, wantedPredicted) {
    [trueFilter.value, predictedFilter.value, outcomeFilter.value] = [wantedTrue, wantedPredicted, ""];
    update();
    find("#images").scrollIntoView();
    const first = gallery.querySelector(".thumb");
    (first ?? find("#images-title")).focus({ preventScroll: true });
    if (first) showDetail(Number(first.dataset.image));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-true]");
    if (button) showImages(button.dataset.true, button.dataset.predicted ?? "");
  });
  update();

  // ---- the confusion matrix
  function drawMatrix(confusion) {
    const status = find("#matrix-status"), isCompact = names.length > 20;
    const totals = confusion.map((row) => row.reduce((sum, cell) => sum + cell, 0));
    const share = (row, column) => (totals[row] ? confusion[row][column] / totals[row] : 0);
    const describe = (row, column) => `True ${names[row]}, predicted ${names[column]}: ${imagesInWords(confusion[row][column])}, ${percent(share(row, column))} of the true class`;
    const cell = (row, column) => {
      const isRight = row === column, shade = isRight ? share(row, column) : Math.sqrt(share(row, column));
      const button = make("button", { type: "button", className: `cell ${isRight ? "right-cell" : "wrong-cell"}`, tabIndex: row || column ? -1 : 0, "aria-label": describe(row, column) });
      if (confusion[row][column]) Object.assign(button.dataset, { true: row, predicted: column });
      else button.classList.add("zero"), button.setAttribute("aria-disabled", "true");
      button.classList.toggle("deep", shade > 0.55);
      button.style.setProperty("--share", shade.toFixed(3));
      for (const moment of ["focus", "pointerenter"]) button.addEventListener(moment, () => (status.textContent = describe(row, column)));
      return make("td", {}, button);
    };
    const heading = names.map((name) => make("th", { scope: "col", title: name }, make("span", {}, name)));
    const rows = confusion.map((cells, row) => make("tr", {}, make("th", { scope: "row" }, names[row]), ...cells.map((_, column) => cell(row, column))));
    const caption = make("caption", {}, "Rows: true class. Columns: predicted class. Move with the arrow keys, open with Enter.");
    const corner = make("td", {}), table = make("table", { className: isCompact ? "compact" : "" }, caption, make("thead", {}, make("tr", {}, corner, ...heading)), make("tbody", {}, ...rows));
    find("#matrix").append(table);
    const cells = () => all("#matrix .cell");
    moveByKeys(table, cells, () => names.length);
    const write = () => {
      const asShare = find("[name=unit]:checked").value === "share";
      cells().forEach((button, at) => {
        const row = Math.floor(at / names.length), column = at % names.length;
        button.textContent = !confusion[row][column] ? "0" : asShare ? (100 * share(row, column)).toFixed(1) : count(confusion[row][column]);
      });
    };
    for (const choice of all("[name=unit]")) choice.addEventListener("change", write);
    write();
  }
  if (data.confusion) drawMatrix(data.confusion);

  // ---- tables, settings and commands
  for (const table of all("table.sortable")) {
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells], body = table.tBodies[0];
    headings.forEach((heading, column) => {
      const button = make("button", { type: "button", className: "sort" }, heading.textContent);
      button.addEventListener("click", () => {
        const isDescending = heading.getAttribute("aria-sort") !== "descending", sign = isDescending ? -1 : 1;
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const compare = (first, second) => {
          const [one, other] = [Number(key(first)), Number(key(second))];
          if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other) || sign * key(first).localeCompare(key(second), "en");
          return sign * (one - other);
        };
        body.append(...[...body.rows].sort(compare));
      });
      heading.replaceChildren(button);
    });
  }

  const onlyDifferent = find("#only-different");
  const filterSettings = () => find("#settings").classList.toggle("only-different", onlyDifferent.checked);
  onlyDifferent.addEventListener("change", filterSettings);
  filterSettings();

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        // the browser refuses: the command is selected, ready to be copied by its keys
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
  }
})();
