import { readFileSync } from 'node:fs'
import { isAbsolute, normalize } from 'node:path'

/** The parameters of serverless.yml, resolved: its defaults, those of the stage, and what --param gives. */
export type Parameters = Readonly<Record<string, unknown>>

const urlForm = '`postgres://user:password@host:5432/database`'

/** Parameters that are taken from another where they are not given: what is wrong with that one is said once. */
const defaults: Readonly<Record<string, string>> = {
  databasePublisherUrl: 'databaseUrl',
  databaseOwnerUrl: 'databaseUrl',
  databasePublisherSecretArn: 'databaseSecretArn',
  databaseOwnerSecretArn: 'databaseSecretArn',
  databaseOwnerAuth: 'databaseAuth',
}

function isPem(path: string): boolean {
  try {
    return readFileSync(path, 'utf8').includes('-----BEGIN CERTIFICATE-----')
  } catch {
    return false
  }
}

/** Reads parameters and notes what is wrong with each. */
export class Reader {
  readonly problems: string[] = []
  readonly #given: Parameters
  readonly #refused = new Set<string>()

  constructor(given: Parameters) {
    this.#given = given
  }

  text(name: string): string {
    return String(this.#given[name] ?? '')
  }

  problem(name: string, expected: string, advice: string): void {
    const value = this.text(name)
    const source = defaults[name]
    if (source !== undefined && this.#refused.has(source) && this.text(source) === value) return
    this.#refused.add(name)
    // Part of a URL or a secret is nobody's business.
    const isSecret = /Url$|Secret$/.test(name)
    const got = value === '' ? 'nothing' : isSecret ? 'something else' : `\`${value}\``
    this.problems.push(`Expected the parameter \`${name}\` ${expected}; got ${got}. ${advice}`)
  }

  oneOf(name: string, values: ReadonlyArray<string>): void {
    if (values.includes(this.text(name))) return
    this.problem(name, `to be ${values.map((value) => `\`${value}\``).join(' or ')}`, this.#giveIt(name))
  }

  matches(name: string, form: RegExp, what: string): void {
    if (!form.test(this.text(name))) this.problem(name, `to be ${what}`, this.#giveIt(name))
  }

  ids(name: string, prefix: string, what: string): void {
    const isValid = this.text(name)
      .split(',')
      .every((id) => new RegExp(`^${prefix}-[0-9a-f]{8,17}$`).test(id))
    if (!isValid) this.problem(name, `to be the ids ${what}, joined by commas`, this.#giveIt(name))
  }

  secret(name: string): void {
    this.matches(name, /^arn:[\w-]+:secretsmanager:[\w-]+:\d{12}:secret:.+$/, 'the ARN of a secret')
  }

  url(name: string): void {
    const url = URL.parse(this.text(name))
    if (url !== null && /^postgres(ql)?:$/.test(url.protocol) && url.pathname.length > 1) return
    const also = name === 'databaseUrl' ? ' or as DATABASE_URL' : ''
    this.problem(name, `to be a URL of the form ${urlForm}`, `Give it with --param ${name}=…${also}.`)
  }

  /** A file that goes with the functions, or, by an absolute path, one that they find where they run. */
  certificates(name: string): void {
    const path = this.text(name)
    if (path === '' || isAbsolute(path)) return
    if (path === normalize(path) && !path.startsWith('..') && isPem(path)) return
    const expected =
      'to be a PEM file, by its path from serverless.yml such as `certificates/eu-central-1.pem`'
    this.problem(
      name,
      expected,
      `${this.#giveIt(name)} AWS has them at https://truststore.pki.rds.amazonaws.com.`,
    )
  }

  integer(name: string, least: number, most: number): number | undefined {
    return this.number(name, least, most, /^\d+$/)
  }

  number(name: string, least: number, most: number, form = /^\d+(\.\d+)?$/): number | undefined {
    const text = this.text(name)
    const value = Number(text)
    if (form.test(text) && value >= least && value <= most) return value
    this.problem(name, `to be ${least}–${most}`, this.#giveIt(name))
    return undefined
  }

  #giveIt(name: string): string {
    return `Give it with --param ${name}=….`
  }
}
