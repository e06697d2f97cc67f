import type { Sql } from '../../src/index.ts'

/** A scan of a table, as it was carried out. */
export interface Scan {
  /** The table, and how it was read: `event by event_position_idx`, `bus by Seq Scan`. */
  readonly what: string
  /** Rows that were read, those that a filter threw away included. */
  readonly rows: number
}

/** A statement that the server carried out, also inside a function. */
export interface Statement {
  readonly text: string
  /** Pages that were looked at. */
  readonly pages: number
  readonly scans: ReadonlyArray<Scan>
}

interface PlanNode {
  readonly 'Node Type': string
  readonly 'Relation Name'?: string
  readonly 'Index Name'?: string
  readonly 'Actual Rows'?: number
  readonly 'Actual Loops'?: number
  readonly 'Rows Removed by Filter'?: number
  readonly 'Rows Removed by Index Recheck'?: number
  readonly 'Shared Hit Blocks'?: number
  readonly 'Shared Read Blocks'?: number
  readonly Plans?: ReadonlyArray<PlanNode>
}

/** Makes a session report the plan of every statement as a notice; needs a superuser. */
export async function reportPlans(sql: Sql): Promise<void> {
  await sql.unsafe(`
    load 'auto_explain';
    set auto_explain.log_min_duration = 0;
    set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on;
    set auto_explain.log_buffers = on;
    set auto_explain.log_timing = off;
    set auto_explain.log_format = json;
    set auto_explain.log_level = notice;
    set client_min_messages = notice;`)
}

/** Reads a notice of auto_explain; undefined for any other. */
export function readPlan(notice: string): Statement | undefined {
  const json = /^duration: .* plan:\n(\{[\s\S]*)$/.exec(notice)?.[1]
  if (json === undefined) return undefined
  const { 'Query Text': text, Plan: root } = JSON.parse(json) as { 'Query Text': string; Plan: PlanNode }
  return {
    text,
    pages: (root['Shared Hit Blocks'] ?? 0) + (root['Shared Read Blocks'] ?? 0),
    scans: scansOf(root),
  }
}

function scansOf(node: PlanNode): Scan[] {
  const below = (node.Plans ?? []).flatMap(scansOf)
  const table = node['Relation Name']
  if (table === undefined || node['Node Type'] === 'ModifyTable') return below
  const times = node['Actual Loops'] ?? 0
  const perLoop =
    (node['Actual Rows'] ?? 0) +
    (node['Rows Removed by Filter'] ?? 0) +
    (node['Rows Removed by Index Recheck'] ?? 0)
  return [
    { what: `${table} by ${node['Index Name'] ?? node['Node Type']}`, rows: Math.round(perLoop * times) },
    ...below,
  ]
}
