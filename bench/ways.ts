/** One way of draining a backlog: by so many pollers at once. */
export interface Way {
  readonly pollers: number
  /** Fills the log and drains it. @returns events a second */
  drain(): Promise<number>
}

/** The same by several numbers of pollers, and what they share. */
export interface Ways {
  readonly ways: ReadonlyArray<Way>
  close(): Promise<void>
}

/** Events a second of each round, by the number of pollers. */
export type Rates = ReadonlyMap<number, ReadonlyArray<number>>

/**
 * Drains in all ways in turn, a number of rounds, so that whatever else the machine does meets all, and closes them.
 * @returns for each of `compared`
 */
export async function drainInTurn(rounds: number, ...compared: Ways[]): Promise<Rates[]> {
  const rates = compared.map(({ ways }) => new Map(ways.map(({ pollers }) => [pollers, [] as number[]])))
  for (let round = 0; round < rounds; round++) {
    for (const [index, { ways }] of compared.entries()) {
      for (const { pollers, drain } of ways) rates[index]?.get(pollers)?.push(await drain())
    }
  }
  for (const { close } of compared) await close()
  return rates
}
