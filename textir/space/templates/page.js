// What Gradio leaves out: names for readers of screens, keys for the slider, a history in the browser.
(() => {
    const STEP = 5; // percent that an arrow key moves the slider by
    const MOST = 12; // results that the history keeps

    function share(wrap) {
        const clipped = [...wrap.querySelectorAll("img")].map((image) => image.style.clipPath);
        const inset = clipped.map((path) => /([\d.]+)%\)/.exec(path || "")).find(Boolean);
        return inset ? Number(inset[1]) : 50;
    }

    function drag(handle, target) {
        const inner = handle.querySelector(".inner") || handle;
        const picture = handle.parentElement.querySelector("img").getBoundingClientRect();
        const box = inner.getBoundingClientRect();
        const y = box.top + box.height / 2;
        const from = box.left + box.width / 2;
        const to = picture.left + (picture.width * target) / 100;
        const at = (x) => ({ bubbles: true, cancelable: true, view: window, clientX: x, clientY: y });
        inner.dispatchEvent(new MouseEvent("mousedown", at(from)));
        window.dispatchEvent(new MouseEvent("mousemove", at(to)));
        window.dispatchEvent(new MouseEvent("mouseup", at(to)));
    }

    function onKey(event) {
        const handle = event.currentTarget;
        const now = Number(handle.getAttribute("aria-valuenow"));
        const moves = { ArrowLeft: now - STEP, ArrowDown: now - STEP, ArrowRight: now + STEP };
        Object.assign(moves, { ArrowUp: now + STEP, Home: 0, End: 100 });
        if (!(event.key in moves)) return;
        event.preventDefault();
        const target = Math.min(Math.max(moves[event.key], 0), 100);
        drag(handle, target);
        handle.setAttribute("aria-valuenow", String(Math.round(target)));
    }

    function nameSlider(handle) {
        const images = handle.parentElement.querySelectorAll("img");
        if (images.length < 2) return;
        images[0].alt = "Before";
        images[1].alt = "After";
        if (handle.getAttribute("role") === "slider") return;
        handle.setAttribute("role", "slider");
        handle.tabIndex = 0;
        handle.setAttribute("aria-label", "How much of the photo before is shown");
        handle.setAttribute("aria-valuemin", "0");
        handle.setAttribute("aria-valuemax", "100");
        handle.setAttribute("aria-valuenow", String(Math.round(share(handle.parentElement))));
        handle.addEventListener("keydown", onKey);
    }

    function mend() {
        document.querySelectorAll("[data-testid=slider]").forEach(nameSlider);
        document.querySelectorAll(".empty[aria-label]").forEach((box) => (box.role = "img"));
        document.querySelectorAll("a[download] button").forEach((button) => (button.tabIndex = -1));
        document.querySelectorAll(".cm-scroller").forEach((code) => (code.tabIndex = 0));
        document
            .querySelectorAll(".image-container[aria-label]")
            .forEach((room) => room.setAttribute("role", "group"));
        document.querySelectorAll("footer img[alt]").forEach((image) => (image.alt = ""));
    }

    function entries() {
        try {
            return JSON.parse(sessionStorage.getItem("textir-history")) || [];
        } catch {
            return [];
        }
    }

    function showHistory() {
        const room = document.getElementById("history");
        const kept = entries();
        if (!room || !kept.length) return;
        const strip = document.createElement("div");
        strip.className = "history";
        const title = document.createElement("p");
        title.textContent = "Results of this visit, kept in this browser";
        kept.forEach(({ name, url, picture }) => {
            const link = document.createElement("a");
            link.href = url;
            link.download = name;
            const image = document.createElement("img");
            image.src = picture;
            image.alt = "Download " + name;
            image.title = name;
            link.append(image);
            strip.append(link);
        });
        room.replaceChildren(title, strip);
    }

    window.textirNote = (file) => {
        if (file.path.includes("/showcase/")) return;
        const image = new Image();
        image.onload = () => {
            const canvas = document.createElement("canvas");
            const factor = 96 / Math.max(image.width, image.height);
            canvas.width = Math.max(image.width * factor, 1);
            canvas.height = Math.max(image.height * factor, 1);
            canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
            const entry = { name: file.orig_name, url: file.url };
            entry.picture = canvas.toDataURL("image/jpeg", 0.8);
            const rest = entries().filter((one) => one.url !== file.url);
            sessionStorage.setItem(
                "textir-history",
                JSON.stringify([entry, ...rest].slice(0, MOST)),
            );
            showHistory();
        };
        image.src = file.url;
    };

    let waiting = false;
    function onChange() {
        if (waiting) return;
        waiting = true;
        setTimeout(() => {
            waiting = false;
            mend();
            if (!document.querySelector("#history .history")) showHistory();
        }, 150);
    }
    function begin() {
        new MutationObserver(onChange).observe(document.body, { childList: true, subtree: true });
        onChange();
    }
    // Gradio may add this script to a page that stands already.
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
    else begin();
})();
