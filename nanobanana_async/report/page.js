"use strict";
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const grid = find(".grid");
  const cards = [...grid.children];
  const search = find("#search");
  const chips = [...document.querySelectorAll(".chip")];
  const dialog = find("#large");
  const texts = new Map();
  let status = "";

  document.documentElement.classList.add("js");

  const facts = (card) => JSON.parse(card.dataset.row);
  const prompt = (card) => find(".prompt", card).textContent;

  // Filter and search

  function searched(card) {
    if (!texts.has(card)) {
      const parts = [...card.querySelectorAll(".prompt, .error, .remark")].map((element) => element.textContent);
      const names = facts(card).t.filter(([name]) => name === "key" || name === "task id").map(([, value]) => value);
      texts.set(card, [parts.join("\n").toLowerCase(), names]);
    }
    return texts.get(card);
  }

  function matches(card, words) {
    if (status && card.dataset.status !== status) return false;
    if (!words.length) return true;
    const [text, names] = searched(card);
    return words.every((word) => text.includes(word.toLowerCase()) || names.includes(word));
  }

  function apply() {
    const words = search.value.split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = matches(card, words);
      shown += fits;
      if (card.hidden === fits) card.hidden = !fits;
    }
    const all = cards.length.toLocaleString("en");
    const rows = cards.length === 1 ? "row" : "rows";
    find("#shown").textContent =
      shown === cards.length ? `${all} ${rows}` : `${shown.toLocaleString("en")} of ${all} ${rows}`;
    find("#none").hidden = shown > 0;
  }

  for (const chip of chips) {
    chip.addEventListener("click", () => {
      status = chip.dataset.status;
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      apply();
    });
  }

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
    grid.append(...cards);
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

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const button = event.target.closest("button");
    const link = event.target.closest(".frame a");
    if (button?.classList.contains("copy")) copy(prompt(card), button);
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

  // The large view

  const largeImage = find("#large-image");
  let links = [];
  let at = 0;

  function enlarge(link) {
    links = [...grid.querySelectorAll(".card:not([hidden]) .frame a")];
    dialog.showModal();
    dialog.focus(); // instead of its first button
    show(links.indexOf(link));
  }

  function show(wanted) {
    at = (wanted + links.length) % links.length;
    const card = links[at].closest(".card");
    const siblings = [...card.querySelectorAll(".frame a")];
    const part = siblings.length > 1 ? ` · image ${siblings.indexOf(links[at]) + 1} of ${siblings.length}` : "";
    const { i, t } = facts(card);
    largeImage.src = links[at].href;
    largeImage.alt = find("img", links[at]).alt;
    find(".stage", dialog).classList.toggle("missing", links[at].classList.contains("missing"));
    find(".place", dialog).textContent = `${at + 1} of ${links.length} · row ${i + 1}${part}`;
    find(".prompt", dialog).textContent = prompt(card);
    find(".full", dialog).href = links[at].href;
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

  find(".prev", dialog).addEventListener("click", () => show(at - 1));
  find(".next", dialog).addEventListener("click", () => show(at + 1));
  find(".close", dialog).addEventListener("click", () => dialog.close());
  find(".act.copy", dialog).addEventListener("click", ({ target }) => copy(prompt(links[at].closest(".card")), target));
  find(".stage", dialog).addEventListener("click", ({ target }) => {
    if (target !== largeImage) dialog.close();
  });

  dialog.addEventListener("keydown", (event) => {
    const wanted = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: links.length - 1 }[event.key];
    if (wanted === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(wanted);
  });

  dialog.addEventListener("close", () => {
    largeImage.removeAttribute("src");
    links[at]?.focus();
    links[at]?.scrollIntoView({ block: "nearest" });
  });

  let touchedAt = 0;
  const stage = find(".stage", dialog);
  stage.addEventListener("touchstart", (event) => (touchedAt = event.changedTouches[0].clientX), { passive: true });
  stage.addEventListener("touchend", (event) => {
    const moved = event.changedTouches[0].clientX - touchedAt;
    if (Math.abs(moved) > 48) show(at + (moved < 0 ? 1 : -1));
  });

  // Mark images whose file is missing.

  const missing = (image) => image.closest("a, .stage")?.classList.add("missing");
  document.addEventListener("error", ({ target }) => target instanceof HTMLImageElement && missing(target), true);
  for (const image of grid.querySelectorAll("img")) {
    if (image.complete && !image.naturalWidth && image.currentSrc) missing(image);
  }
})();
