import { type Parameters, Reader } from './parameter-reader.ts'

/** What is wrong with the parameters, each with how to mend it; empty: nothing that can be seen without AWS. */
export function checkParameters(given: Parameters): string[] {
  const parameters = new Reader(given)
  parameters.oneOf('database', ['url', 'existing', 'new'])
  const check = { url: checkUrl, existing: checkExisting, new: checkNew }[parameters.text('database')]
  check?.(parameters)
  checkFunctions(parameters)
  return parameters.problems
}

/**
 * What cannot be right about the parameters on the command line, before they are mixed with the defaults.
 * @param known the names that serverless.yml has
 */
export function checkNames(given: Iterable<string>, known: ReadonlyArray<string>): string[] {
  return [...given]
    .filter((name) => !known.includes(name))
    .map((name) => `There is no parameter \`${name}\`. There are: ${known.join(', ')}.`)
}

const resourceId =
  'the resource id of the database, as in its ARN for IAM: `cluster-…` of Aurora (DbClusterResourceId), `db-…` of RDS (DbiResourceId), `prx-…` of a proxy'

/** Parameters that mean nothing without a VPC of yours. */
const vpcOnly = ['databaseHost', 'databaseResourceId', 'databaseSecretArn', 'subnetIds', 'securityGroupIds']

function checkUrl(parameters: Reader): void {
  for (const name of ['databaseUrl', 'databasePublisherUrl', 'databaseOwnerUrl']) parameters.url(name)
  onlyForExisting(parameters, 'database=url knows a URL and no VPC')
}

function onlyForExisting(parameters: Reader, because: string): void {
  for (const name of vpcOnly) {
    if (parameters.text(name) === '') continue
    const expected = `to be given with database=existing only; ${because}`
    parameters.problem(name, expected, 'Say --param database=existing, or leave it out.')
  }
}

function checkExisting(parameters: Reader): void {
  const methods = ['iam', 'secret', 'url']
  parameters.oneOf('databaseAuth', methods)
  parameters.oneOf('databaseOwnerAuth', methods)
  const used = ['databaseAuth', 'databaseOwnerAuth'].map((name) => parameters.text(name))
  if (used.some((auth) => auth !== 'url')) checkPlace(parameters)
  if (used.includes('iam'))
    parameters.matches('databaseResourceId', /^(cluster|db|prx)-[A-Z0-9]+$/i, resourceId)
  checkSignIn(parameters, 'databaseAuth', {
    iam: [],
    secret: ['databaseSecretArn', 'databasePublisherSecretArn'],
    url: ['databaseUrl', 'databasePublisherUrl'],
  })
  checkSignIn(parameters, 'databaseOwnerAuth', {
    iam: ['databaseOwner'],
    secret: ['databaseOwnerSecretArn'],
    url: ['databaseOwnerUrl'],
  })
  parameters.ids(
    'subnetIds',
    'subnet',
    'of the subnets in which the functions are to run, in two zones or more',
  )
  parameters.ids(
    'securityGroupIds',
    'sg',
    "of security groups for the functions, which the database's group lets in",
  )
  parameters.oneOf('databasePrepare', ['true', 'false'])
}

function checkPlace(parameters: Reader): void {
  parameters.matches('databaseHost', /^[a-z0-9.-]+$/i, 'a host name, without a port')
  parameters.integer('databasePort', 1, 65_535)
  parameters.matches('databaseName', /^.{1,63}$/, 'the name of a database')
}

/** The parameters that each method of signing in takes. */
type SignIns = Record<'iam' | 'secret' | 'url', string[]>

function checkSignIn(parameters: Reader, by: string, { iam, secret, url }: SignIns): void {
  const auth = parameters.text(by)
  if (auth === 'iam')
    for (const name of iam) parameters.matches(name, /^[\w$-]{1,63}$/, 'the name of a database user')
  if (auth === 'secret') for (const name of secret) parameters.secret(name)
  if (auth === 'url') for (const name of url) parameters.url(name)
}

function checkNew(parameters: Reader): void {
  onlyForExisting(parameters, 'database=new makes the network and the database')
  for (const name of ['databaseAuth', 'databaseOwnerAuth']) {
    if (parameters.text(name) !== 'iam') {
      parameters.problem(
        name,
        'to be left at `iam` with database=new',
        'Leave it out: no password is needed.',
      )
    }
  }
  parameters.matches('databaseName', /^[a-z][a-z0-9_]{0,62}$/i, 'a name of letters, digits and `_`')
  parameters.matches(
    'databaseVersion',
    /^1[4-9]\.\d+$/,
    'a version of Aurora PostgreSQL such as `17.5`, 14 or newer',
  )
  const least = parameters.number('databaseMinCapacity', 0, 256)
  const most = parameters.number('databaseMaxCapacity', 1, 256)
  if (least !== undefined && most !== undefined && least > most) {
    parameters.problem(
      'databaseMaxCapacity',
      `to be at least databaseMinCapacity, which is ${least}`,
      'Raise one or lower the other.',
    )
  }
  parameters.integer('databaseBackupDays', 1, 35)
  parameters.oneOf('databaseDeletionPolicy', ['Snapshot', 'Retain', 'Delete'])
  parameters.oneOf('databaseDeletionProtection', ['true', 'false'])
  parameters.oneOf('databaseDataApi', ['true', 'false'])
  parameters.matches(
    'vpcCidr',
    /^\d+\.\d+\.\d+\.\d+\/(1[6-9]|2[0-3])$/,
    'a range such as `10.83.0.0/16`, from /16 to /23',
  )
}

function checkFunctions(parameters: Reader): void {
  parameters.certificates('databaseCaFile')
  if (parameters.text('githubWebhookSecret').length < 8) {
    parameters.problem(
      'githubWebhookSecret',
      'to be the secret of the webhook, 8 characters or more',
      'Make one with `openssl rand -hex 32`, and give it with --param or as GITHUB_WEBHOOK_SECRET.',
    )
  }
  parameters.integer('maxPollers', 1, 1_000)
  parameters.oneOf('reservePollers', ['true', 'false'])
  parameters.integer('lingerMs', 0, 60_000)
  for (const name of ['keepEventDays', 'keepAttemptDays', 'keepDeadLetterDays'])
    parameters.number(name, 0, 36_500)
  parameters.matches('pollSchedule', /^(rate|cron)\(.+\)$/, 'a schedule such as `rate(1 minute)`')
  const seconds = parameters.integer('pollAlarmSeconds', 60, 86_400)
  if (seconds !== undefined && seconds % 60 !== 0) {
    parameters.problem('pollAlarmSeconds', 'to be whole minutes', 'Give a multiple of 60.')
  }
}
