// Text that came from elsewhere may hold characters that nobody sees, or that turn what stands beside them around. Each
// of them gets a sign.

/**
 * What turns writing around, or takes no room: bidirectional controls, control characters but line ends and tabs,
 * zero-width spaces and fillers, tags. Joiners stay, since scripts and emoji need them.
 */
const UNSEEN =
  /[\u0000-\u0008\u000B\u000C\u000E-\u001F\u007F-\u009F\u00AD\u061C\u180E\u200B\u200E\u200F\u2028-\u202E\u2060-\u206F\uFEFF\uFFF9-\uFFFB\u{E0000}-\u{E007F}]/gu;

/**
 * A text as text and signs. The character stays where it is, so that what is copied is what is there; but it stands
 * alone, and turns nothing around.
 */
export function signed(text) {
  if (text.search(UNSEEN) < 0) return [text];
  const parts = [];
  let from = 0;
  for (const { 0: character, index } of text.matchAll(UNSEEN)) {
    if (index > from) parts.push(document.createTextNode(text.slice(from, index)));
    parts.push(sign(character));
    from = index + character.length;
  }
  parts.push(document.createTextNode(text.slice(from)));
  return parts;
}

function sign(character) {
  const element = document.createElement('span');
  element.className = 'unseen';
  element.dataset.code = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  element.append(character);
  return element;
}

/** As many columns as a text takes, as blanks; its signs take theirs. */
export const blanks = (text) => text.replace(/[^\t]/g, (one) => (one.search(UNSEEN) < 0 ? ' ' : one));
