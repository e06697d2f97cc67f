/** Rows of a kind that are counted one by one; beyond that there is an estimate or `isMore`. */
export const countedTo = 50_000

/** A number that is exact up to `countedTo`. */
export interface Counted {
  readonly count: number
  readonly isMore: boolean
}

/** What one kind of event has waiting, among the rows that were counted. */
export interface EventStatus {
  readonly name: string
  readonly backlog: number
  readonly due: number
  readonly later: number
  readonly leased: number
  readonly dead: number
}

/** Some of these numbers, by event name. */
export type CountsByName = ReadonlyArray<Partial<EventStatus> & { readonly name: string }>
