"use strict";
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const grid = find(".cards");
  const groups = [...grid.children]; // a browser lays out a short grid in a moment, one of thousands of cards slowly
  const GROUP = Number(grid.dataset.group);
  const cards = groups.flatMap((group) => [...group.children]);
  const search = find("#search");
  const chips = [...document.querySelectorAll(".chip")];
  const filters = [...document.querySelectorAll(".filter")];
  const dialog = find("#large");
  const texts = new Map();
  const parsed = new Map();
  let shown = [...cards]; // in the order on the page
  let status = "";
  let chosen = []; // of the filters: the number of the name and of the value

  document.documentElement.classList.add("js");

  function facts(card) {
    if (!parsed.has(card)) parsed.set(card, JSON.parse(card.dataset.row));
    return parsed.get(card);
  }
  const number = (card) => find(".no", card).textContent; // what people call the row: its line, or its row in the table
  const prompt = (card) => find(".prompt", card).textContent;
  const detail = (card, wanted) => facts(card).t.find(([name]) => name === wanted)?.[1] ?? "";
  const fileName = (link) => {
    const name = link.getAttribute("href").split("/").pop();
    try {
      return decodeURIComponent(name);
    } catch {
      return name; // not UTF-8
    }
  };

  // Filter and search

  const LETTERS = { ß: "ss", æ: "ae", œ: "oe", ø: "o", đ: "d", ð: "d", ł: "l", ı: "i", þ: "th" };
  const folded = (text) =>
    text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase().replace(/[ßæœøđðłıþ]/g, (letter) => LETTERS[letter]);

  function searched(card) {
    if (!texts.has(card)) {
      const parts = [...card.querySelectorAll(".prompt, .error, .remark")].map((element) => element.textContent);
      const links = [...card.querySelectorAll(".frame a")];
      const names = [detail(card, "key"), detail(card, "job key"), detail(card, "task id"), ...links.map(fileName)].map(folded).filter(Boolean);
      // A word of a name is found by its beginning: keys are hexadecimal, and "bed" is in the middle of many.
      const starts = names.flatMap((name) => [name, ...name.split(/[^\p{L}\p{N}]+/u)]);
      texts.set(card, [folded([...parts, detail(card, "metadata")].join("\n")), starts, number(card)]);
    }
    return texts.get(card);
  }

  function matches(card, words) {
    if (status && card.dataset.status !== status) return false;
    if (chosen.some(([name, value]) => facts(card).f[name] !== value)) return false;
    if (!words.length) return true;
    const [text, starts, row] = searched(card);
    return words.every(
      (word) => word === row || word === `#${row}` || text.includes(word) || starts.some((start) => start.startsWith(word)),
    );
  }

  function arrange() {
    const pages = [];
    for (let from = 0; from < shown.length; from += GROUP) {
      const group = groups[from / GROUP];
      const part = shown.slice(from, from + GROUP);
      if (part.length !== group.children.length || part.some((card, at) => card !== group.children[at])) {
        group.replaceChildren(...part);
      }
      pages.push(group);
    }
    for (const group of groups.slice(pages.length)) group.replaceChildren();
    grid.replaceChildren(...pages);
  }

  /** Show the beginning of what was found, where the bar is at the top of the screen. */
  function scrollUp() {
    if (scrollY && find(".bar").getBoundingClientRect().top <= 0) find("#gallery").scrollIntoView();
  }

  function apply() {
    const words = folded(search.value).split(/\s+/).filter(Boolean);
    const fitting = cards.filter((card) => matches(card, words));
    if (fitting.length !== shown.length || fitting.some((card, at) => card !== shown[at])) {
      shown = fitting;
      arrange();
      scrollUp();
    }
    const all = cards.length.toLocaleString("en");
    const rows = cards.length === 1 ? "row" : "rows";
    find("#shown").textContent =
      shown.length === cards.length ? `${all} ${rows}` : `${shown.length.toLocaleString("en")} of ${all} ${rows}`;
    find("#none").hidden = shown.length > 0;
    countPicked();
    find("#pick-all").textContent = shown.length === cards.length ? "Select all" : "Select these";
  }

  function showAll() {
    search.value = "";
    for (const filter of filters) filter.value = "";
    choose();
    chips[0].click();
  }

  for (const chip of chips) {
    chip.addEventListener("click", () => {
      status = chip.dataset.status;
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      apply();
    });
  }

  function choose() {
    chosen = filters.filter(({ value }) => value).map(({ dataset, value }) => [dataset.number, Number(value)]);
    for (const filter of filters) filter.classList.toggle("on", Boolean(filter.value));
    apply();
  }

  for (const filter of filters) filter.addEventListener("change", choose);

  let soon = 0;
  search.addEventListener("input", () => {
    cancelAnimationFrame(soon);
    soon = requestAnimationFrame(apply);
  });

  find("#sort").addEventListener("change", ({ target }) => {
    const name = target.value.replace("-", "");
    const sign = target.value.startsWith("-") ? -1 : 1;
    const keyed = cards.map((card) => [facts(card), card]);
    const worth = (fact) => fact[name] ?? -Infinity;
    keyed.sort(([one], [other]) => {
      const [a, b] = [worth(one), worth(other)];
      return a === b ? one.i - other.i : sign * (a < b ? -1 : 1);
    });
    cards.splice(0, cards.length, ...keyed.map(([, card]) => card));
    apply();
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (event.key !== "/" || typing || dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    search.focus();
    search.select();
  });

  // Copying

  function copyByHand(text, near) {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "away";
    near.after(area); // inside an open dialog, since nothing outside of it can be selected
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    near.focus();
    return copied;
  }

  async function copy(text, button) {
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copied = copyByHand(text, button); // some browsers have no clipboard for local pages
    }
    const label = (button.dataset.label ??= button.textContent);
    button.textContent = copied ? "Copied" : "Not copied";
    clearTimeout(Number(button.dataset.timer));
    button.dataset.timer = String(setTimeout(() => (button.textContent = label), 1600));
  }

  // Selection: the rows' own keys, or else those of their jobs, for other commands

  const picked = () => cards.filter((card) => card.classList.contains("on"));
  const keysOf = (chosen) => chosen.map((card) => [facts(card).i, detail(card, "key") || detail(card, "job key")]).sort(([a], [b]) => a - b).map(([, key]) => key);
  let last = null;

  function pick(chosen, on) {
    for (const card of chosen) {
      card.classList.toggle("on", on);
      find(".pick input", card).checked = on;
    }
    countPicked();
  }

  function countPicked() {
    const chosen = picked();
    const visible = chosen.filter((card) => shown.includes(card)).length;
    const hidden = visible < chosen.length ? `, ${visible.toLocaleString("en")} shown` : "";
    find(".picked").hidden = !chosen.length;
    find(".picked b").textContent = `${chosen.length.toLocaleString("en")} selected${hidden}`;
  }

  function pickFrom(box, card, range) {
    const [from, to] = [shown.indexOf(last), shown.indexOf(card)].sort((a, b) => a - b);
    pick(range && from >= 0 ? shown.slice(from, to + 1) : [card], box.checked);
    last = card;
  }

  find("#pick-all").addEventListener("click", () => pick(shown, true));
  find("#pick-none").addEventListener("click", () => {
    pick(picked(), false);
    search.focus(); // the button is gone
  });
  find("#copy-keys").addEventListener("click", ({ target }) => copy(keysOf(picked()).join("\n"), target));
  find("#save-keys").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([keysOf(picked()).join("\n"), "\n"], { type: "text/plain" }));
    link.download = `${document.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-keys.txt`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const button = event.target.closest("button");
    const link = event.target.closest(".frame a");
    if (event.target.matches(".pick input")) pickFrom(event.target, card, event.shiftKey);
    if (button?.classList.contains("copy")) copy(prompt(card), button);
    if (button?.classList.contains("copy-command")) copy(find(".command code", card).textContent, button);
    if (button?.classList.contains("more")) {
      const open = card.classList.toggle("open");
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? "Less" : "More";
    }
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      enlarge(link);
    }
  });

  // The large view: its address is the page's with #row-12, or #row-12-2 for the second image of the row

  const largeImage = find("#large-image");
  const stage = find(".stage", dialog);
  const zoom = find(".zoom", dialog);
  let links = [];
  let at = 0;

  const place = (link) => {
    const card = link.closest(".card");
    const siblings = [...card.querySelectorAll(".frame a")];
    return { card, siblings, part: siblings.indexOf(link) };
  };
  const address = (link) => {
    const { card, part } = place(link);
    return `#${card.id}${part ? `-${part + 1}` : ""}`;
  };

  function remember(change, hash) {
    try {
      history[change]({ large: change === "pushState" || history.state?.large }, "", location.href.split("#")[0] + hash);
    } catch {
      // some browsers refuse this for local pages, or when it happens often: then the image has no address
    }
  }

  function open(link) {
    links = [...grid.querySelectorAll(".frame a")];
    if (!dialog.open) dialog.showModal();
    dialog.focus(); // instead of its first button
    show(links.indexOf(link));
  }

  function enlarge(link) {
    remember("pushState", address(link));
    open(link);
  }

  function turn(wanted) {
    show(wanted);
    remember("replaceState", address(links[at]));
  }

  function show(wanted) {
    at = (wanted + links.length) % links.length;
    const link = links[at];
    const { card, siblings, part } = place(link);
    const { t } = facts(card);
    setZoom(false);
    largeImage.src = link.href;
    largeImage.alt = find("img", link).alt;
    stage.classList.toggle("missing", link.classList.contains("missing"));
    const which = siblings.length > 1 ? ` · image ${part + 1} of ${siblings.length}` : "";
    find(".place", dialog).textContent = `${at + 1} of ${links.length} · row ${number(card)}${which}`;
    find(".file", dialog).textContent = fileName(link);
    find(".prompt", dialog).textContent = prompt(card);
    find(".full", dialog).href = find(".save", dialog).href = link.href;
    find(".save", dialog).download = fileName(link);
    find(".act.copy", dialog).hidden = !prompt(card);
    find(".side", dialog).scrollTop = 0;
    const list = find("dl", dialog);
    list.replaceChildren();
    for (const [name, value] of t) {
      const term = document.createElement("dt");
      const description = document.createElement("dd");
      term.textContent = name;
      description.textContent = value;
      description.dir = "auto";
      list.append(term, description);
    }
    for (const near of [at + 1, at - 1]) {
      if (links[near]) new Image().src = links[near].href;
    }
  }

  function setZoom(on, x = 0.5, y = 0.5) {
    const scale = Math.min(stage.clientWidth / largeImage.naturalWidth, stage.clientHeight / largeImage.naturalHeight);
    const zoomed = on && Number.isFinite(scale);
    const times = Math.max(1, 2 * scale); // its own size, or twice what fits for a small image
    stage.classList.toggle("zoomed", zoomed);
    zoom.setAttribute("aria-pressed", String(zoomed));
    largeImage.style.width = zoomed ? `${largeImage.naturalWidth * times}px` : "";
    largeImage.style.height = zoomed ? `${largeImage.naturalHeight * times}px` : "";
    if (zoomed) {
      stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
    }
  }

  /** Show what the address names: after back, forward, or when the page is opened by a link. */
  function follow() {
    if (location.hash === "#run" && find("#run")) find("#run").open = true;
    const [, id, part] = /^#(row-\d+)(?:-(\d+))?$/.exec(location.hash) ?? [];
    const card = id && cards.find((one) => one.id === id);
    const link = card && card.querySelectorAll(".frame a")[Number(part ?? 1) - 1];
    if (link) {
      if (!shown.includes(card)) showAll();
      open(link);
    } else if (dialog.open) {
      dialog.close();
    }
  }

  addEventListener("popstate", follow);
  addEventListener("hashchange", follow);
  for (const link of document.querySelectorAll("a[href='#run']")) {
    link.addEventListener("click", () => (find("#run").open = true)); // also when the address is #run already
  }

  find(".prev", dialog).addEventListener("click", () => turn(at - 1));
  find(".next", dialog).addEventListener("click", () => turn(at + 1));
  find(".close", dialog).addEventListener("click", () => dialog.close());
  find(".act.copy", dialog).addEventListener("click", ({ target }) => copy(prompt(links[at].closest(".card")), target));
  find(".act.link", dialog).addEventListener("click", ({ target }) => {
    copy(location.href.split("#")[0] + address(links[at]), target);
  });
  if (location.protocol === "file:") {
    find(".save", dialog).title = "Of a page on this computer, some browsers open the file instead of saving it.";
  }
  zoom.addEventListener("click", () => setZoom(!stage.classList.contains("zoomed")));
  stage.addEventListener("click", (event) => {
    const fit = Math.min(stage.clientWidth / largeImage.naturalWidth, stage.clientHeight / largeImage.naturalHeight);
    const box = largeImage.getBoundingClientRect();
    const x = (event.clientX - box.left - box.width / 2) / (largeImage.naturalWidth * fit) + 0.5;
    const y = (event.clientY - box.top - box.height / 2) / (largeImage.naturalHeight * fit) + 0.5;
    if (stage.classList.contains("zoomed")) setZoom(false);
    else if (x >= 0 && x <= 1 && y >= 0 && y <= 1) setZoom(true, x, y);
    else dialog.close(); // beside the image
  });

  dialog.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    const wanted = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: links.length - 1 }[event.key];
    if (event.key === "z") setZoom(!stage.classList.contains("zoomed"));
    else if (x !== undefined && stage.classList.contains("zoomed")) stage.scrollBy(x * 120, y * 120);
    else if (wanted !== undefined) turn(wanted);
    else return;
    event.preventDefault();
  });

  dialog.addEventListener("close", () => {
    largeImage.removeAttribute("src");
    setZoom(false);
    if (/^#row-/.test(location.hash)) {
      if (history.state?.large) history.back();
      else remember("replaceState", "");
    }
    links[at]?.focus();
    links[at]?.scrollIntoView({ block: "nearest" });
  });

  let touchedAt = null;
  stage.addEventListener("touchstart", ({ touches }) => (touchedAt = touches.length > 1 ? null : touches[0].clientX), { passive: true });
  stage.addEventListener("touchend", (event) => {
    const moved = touchedAt === null ? 0 : event.changedTouches[0].clientX - touchedAt;
    if (Math.abs(moved) > 48 && !stage.classList.contains("zoomed")) turn(at + (moved < 0 ? 1 : -1));
  });

  // An image without its thumbnail shows itself; without its file it is marked.

  function failed(image) {
    const link = image.closest(".frame a");
    if (link && image.src !== link.href) image.src = link.href;
    else (link ?? image.closest(".stage"))?.classList.add("missing");
  }
  document.addEventListener("error", ({ target }) => target instanceof HTMLImageElement && failed(target), true);
  for (const image of grid.querySelectorAll("img")) {
    if (image.complete && !image.naturalWidth && image.currentSrc) failed(image);
  }

  // The guessed height of groups that were never on the screen

  const guess = () => groups.length > 1 && grid.style.setProperty("--group", getComputedStyle(groups[0]).height);
  addEventListener("resize", guess);
  guess();

  if (location.hash) follow();
})();
