/** One way of draining a backlog, by several numbers of pollers. */
export interface Way {
  readonly numbers: ReadonlyArray<number>
  /** Fills the log and drains it by one of the numbers. @returns events a second */
  drain(pollers: number): Promise<number>
  close(): Promise<void>
}

/** Events a second of each round, by the number of pollers. */
export type Rates = ReadonlyMap<number, ReadonlyArray<number>>

/**
 * Drains in all ways, by each number, in turn, a number of rounds, so that whatever else the machine does meets all, and
 * closes them.
 * @returns for each way
 */
export async function drainInTurn(rounds: number, ...ways: Way[]): Promise<Rates[]> {
  const measured = ways.map((way) => ({
    way,
    rates: new Map<number, number[]>(way.numbers.map((n) => [n, []])),
  }))
  for (let round = 0; round < rounds; round++) {
    for (const { way, rates } of measured) {
      for (const [pollers, ofPollers] of rates) ofPollers.push(await way.drain(pollers))
    }
  }
  for (const way of ways) await way.close()
  return measured.map(({ rates }) => rates)
}
