(() => {
  if (window.graceExplanations) return;
  window.graceExplanations = true;
  const tip = document.createElement("div");
  tip.className = "grace-tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  let pinned = null, current = null, marked = [];

  function clear() {
    for (const word of marked) word.classList.remove("here", "partner");
    marked = [];
    current = null;
    tip.hidden = true;
  }

  function place() {
    const box = current.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const below = box.bottom + 8 + size.height < window.innerHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - size.width - 8))}px`;
    tip.style.top = `${below ? box.bottom + 8 : box.top - size.height - 8}px`;
  }

  function partners(word) {
    const side = word.closest(".side");
    const other = side.parentElement.querySelector(side.classList.contains("query") ? ".side.document" : ".side.query");
    const places = word.dataset.p ? word.dataset.p.split(" ") : [];
    return places.map((place) => other.querySelector(`.w[data-i="${place}"]`)).filter(Boolean);
  }

  function show(word) {
    clear();
    word.classList.add("here");
    marked.push(word);
    const found = partners(word);
    found.forEach((other, order) => {
      other.classList.add("partner");
      other.style.setProperty("--near", String(1 - order / found.length));
      marked.push(other);
    });
    const names = [...new Set(found.map((other) => other.textContent))].join(", ");
    tip.textContent = `${word.textContent.trim()}\ncontribution ${word.dataset.c}, weight ${word.dataset.w}` +
      (names ? `\nagrees most with: ${names}` : "");
    if (!tip.isConnected) document.body.append(tip);
    tip.hidden = false;
    current = word;
    place();
  }

  const wordAt = (event) => event.target instanceof Element ? event.target.closest(".grace .w") : null;
  document.addEventListener("mouseover", (event) => {
    const word = wordAt(event);
    if (word) show(word); else if (pinned) show(pinned); else clear();
  });
  document.addEventListener("click", (event) => {
    const word = wordAt(event);
    pinned = word === pinned ? null : word;
    if (pinned) show(pinned); else clear();
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") { pinned = null; clear(); } });
  document.addEventListener("scroll", () => { if (current) place(); }, true);
})();
