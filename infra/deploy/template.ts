import { readFile } from 'node:fs/promises'

/** A CloudFormation template, as far as anything here looks into it. */
export interface Template {
  readonly Resources: Readonly<Record<string, Resource>>
}

/** One resource of a template. */
export interface Resource {
  readonly Type: string
  readonly DependsOn?: string | readonly string[]
  readonly Properties?: Readonly<Record<string, unknown>>
}

/** Reads a template that was packaged. */
export async function readTemplate(path: string): Promise<Template> {
  return JSON.parse(await readFile(path, 'utf8')) as Template
}

/** The resources by type: how many, and their names; functions by what they are called. */
export function countByType({ Resources }: Template): { type: string; names: string[] }[] {
  const names = new Map<string, string[]>()
  for (const [id, { Type, Properties }] of Object.entries(Resources)) {
    const name = Properties?.['FunctionName']
    const isFunction = Type === 'AWS::Lambda::Function' && typeof name === 'string'
    names.set(Type, [...(names.get(Type) ?? []), isFunction ? name : id])
  }
  return [...names].map(([type, all]) => ({ type, names: all })).sort((a, b) => (a.type < b.type ? -1 : 1))
}
