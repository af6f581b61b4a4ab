// Keeps the end of the conversation in view while it grows, until the reader scrolls away from it.

const NEAR = 64; // px

export class Follower {
  constructor(content, button) {
    this.button = button;
    this.following = true;
    this.at = 0;
    addEventListener("scroll", () => this.look(), { passive: true });
    addEventListener("resize", () => this.look(), { passive: true });
    new ResizeObserver(() => (this.following ? this.jump() : this.look())).observe(content);
    button.addEventListener("click", () => this.follow());
  }

  /** Go to the end, and stay there. */
  follow() {
    this.following = true;
    this.jump();
  }

  jump() {
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    this.look();
  }

  look() {
    const isNear = scrollY + innerHeight >= document.documentElement.scrollHeight - NEAR;
    // Only the reader moves up; being far from the end without that means that the end has just moved away.
    if (isNear || scrollY < this.at - 1) this.following = isNear;
    this.at = scrollY;
    this.button.hidden = isNear || this.following;
  }
}
