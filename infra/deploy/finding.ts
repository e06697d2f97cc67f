/** What a check of a deployment found. */
export interface Finding {
  /** `error`: the deployment would fail, or what it makes would not work. `note`: good to know, or not knowable here. */
  readonly level: 'error' | 'note'
  /** What, and how to mend it; a command is a line of its own, indented. */
  readonly text: string
}

/** @see Finding */
export function error(text: string): Finding {
  return { level: 'error', text }
}

/** @see Finding */
export function note(text: string): Finding {
  return { level: 'note', text }
}
