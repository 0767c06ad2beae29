// What scrolls sideways (a wide table, long lines) can be reached and scrolled by the keyboard.
const reachable = () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre, .md-typeset pre > code, .formula"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
};
addEventListener("load", reachable);
addEventListener("resize", reachable);
