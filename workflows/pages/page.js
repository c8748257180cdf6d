"use strict";
/* A table that is wider than its place gets a shadow on the side where it continues. */
for (const box of document.querySelectorAll(".wide")) {
  const mark = () => {
    const { scrollLeft, scrollWidth, clientWidth } = box;
    box.parentElement.classList.toggle("more-left", scrollLeft > 1);
    box.parentElement.classList.toggle("more-right", scrollLeft + clientWidth < scrollWidth - 1);
  };
  box.addEventListener("scroll", mark);
  new ResizeObserver(mark).observe(box);
}
/* The buttons that copy a figure's data. Pages from disk have no clipboard API in some browsers: the text is then selected. */
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
  }
});
