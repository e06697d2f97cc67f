import { randomUUID } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import { needsOf } from '../infra/deploy/permissions.ts'
import { type Resource, readTemplate, type Template } from '../infra/deploy/template.ts'
import { packageVariant, type Variant, variants } from '../infra/lint/variants.ts'
import { packaging } from './support/packaging.ts'

const folder = fileURLToPath(new URL(`../.esbuild/policies-${randomUUID()}`, import.meta.url))
afterAll(() => rm(folder, { recursive: true, force: true }))

const place = {
  partition: 'aws',
  region: 'eu-central-1',
  account: '123456789012',
  stack: 'loopless-production',
}

/** What the migration of database=new needs to reach what it does. */
const reached = [
  'DatabaseInstance',
  'SecretsEndpoint',
  'S3Endpoint',
  'SubnetARoutes',
  'SubnetBRoutes',
  'FunctionsToDatabase',
  'DatabaseFromFunctions',
]

/** A statement of a policy; any other key in it would be missing from the snapshot. */
interface Statement {
  Sid?: string
  Effect: string
  Principal?: unknown
  Action: string | string[]
  Resource?: unknown
  Condition?: unknown
}

describe('the packaged policies', { timeout: 300_000 }, () => {
  // A permission that is widened, or a new one, shows as a line in a review.
  for (const variant of Object.keys(variants) as Variant[]) {
    it(`allow nothing but what is listed: ${variant}`, async () => {
      const path = await packaging(() => packageVariant(variant, join(folder, variant)))
      const template = await readTemplate(path)
      expect(needsOf(template, place)).not.toEqual([]) // it throws for a type that it does not know
      if (variant === 'new') {
        // Removed after the migration: until then it reaches the database, its secret, and S3, where it answers.
        expect([...closureOf('Migration', template)]).toEqual(expect.arrayContaining(reached))
      }
      const lines = Object.entries(template.Resources).flatMap(([name, resource]) => {
        const permissions = permissionsOf(resource)
        return permissions.length === 0 ? [] : [name, ...permissions.map((line) => `  ${line}`), '']
      })
      await expect(lines.join('\n')).toMatchFileSnapshot(`policies/${variant}.txt`)
    })
  }
})

/** A resource, and all that CloudFormation makes before it and removes after it. */
function closureOf(name: string, { Resources }: Template, found = new Set<string>()): Set<string> {
  const resource = Resources[name]
  if (resource === undefined || found.has(name)) return found
  found.add(name)
  const named = [resource.DependsOn ?? [], referencesOf(resource.Properties)].flat()
  for (const other of named) closureOf(other, { Resources }, found)
  return found
}

/** The names in Ref, Fn::GetAtt and Fn::Sub. */
function referencesOf(value: unknown): string[] {
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([key, one]) => {
    if (key === 'Ref') return [one]
    if (key === 'Fn::GetAtt') return [[one].flat()[0].split('.')[0]]
    const pattern = key === 'Fn::Sub' ? [one].flat()[0] : ''
    const inPattern = [...pattern.matchAll(/\$\{(\w+)/g)].map(([, name = '']) => name)
    return [...inPattern, ...referencesOf(one)]
  })
}

/** What a resource permits, a line each. */
function permissionsOf({ Type, Properties = {} }: Resource): string[] {
  if (Type === 'AWS::Lambda::Permission') return [JSON.stringify(plain(Properties))]
  const documents = [
    Properties['AssumeRolePolicyDocument'],
    Properties['PolicyDocument'],
    ...((Properties['Policies'] ?? []) as { PolicyDocument: unknown }[]).map((one) => one.PolicyDocument),
  ]
  const managed = (Properties['ManagedPolicyArns'] ?? []) as unknown[]
  return [
    ...managed.map((policy) => `has ${text(policy)}`),
    ...documents
      .filter((one) => one !== undefined)
      .flatMap((one) => (one as { Statement: Statement[] }).Statement.map(say)),
  ]
}

function say({ Sid: _, Effect, Principal, Action, Resource, Condition, ...rest }: Statement): string {
  expect(rest).toEqual({})
  const parts = [`${Effect} ${[Action].flat().join(', ')}`]
  if (Principal !== undefined) parts.push(`by ${text(Principal)}`)
  if (Resource !== undefined) parts.push(`on ${[Resource].flat().map(text).join(', ')}`)
  if (Condition !== undefined) parts.push(`if ${text(Condition)}`)
  return parts.join(' ')
}

function text(value: unknown): string {
  const written = plain(value)
  return typeof written === 'string' ? written : JSON.stringify(written)
}

/** CloudFormation's functions as the strings that they make: `${PollLogGroup.Arn}`. */
function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  const [[name, argument] = ['', null], ...others] = Object.entries(value)
  if (others.length === 0) {
    if (name === 'Ref') return `\${${argument}}`
    if (name === 'Fn::GetAtt') return `\${${[argument].flat().join('.')}}`
    if (name === 'Fn::Join') return (argument[1] as unknown[]).map(text).join(argument[0])
    if (name === 'Fn::Sub') return typeof argument === 'string' ? argument : substituted(argument)
  }
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]))
}

function substituted([pattern, values]: [string, Record<string, unknown>]): string {
  return Object.entries(values).reduce(
    (made, [key, one]) => made.replaceAll(`\${${key}}`, text(one)),
    pattern,
  )
}
