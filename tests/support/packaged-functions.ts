import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { unzipSync } from 'fflate'
import { project } from '../../infra/local/home.ts'

/** A function as `serverless package` would have it deployed. */
export interface PackagedFunction {
  /** service-stage-name */
  readonly functionName: string
  /** `file.export` below its root. */
  readonly handler: string
  readonly environment: Readonly<Record<string, string>>
  readonly timeoutSeconds: number
  readonly memoryMb: number
  /** Its files, by their paths. */
  readonly files: Readonly<Record<string, Uint8Array>>
  readonly zipBytes: number
  /** The code that is loaded, without its source map. */
  readonly codeBytes: number
}

interface FunctionResource {
  readonly Type: string
  readonly Properties: {
    readonly FunctionName: string
    readonly Handler: string
    readonly Timeout: number
    readonly MemorySize: number
    readonly Environment: { readonly Variables: Record<string, string> }
  }
}

/**
 * By their names in serverless.yml. Runs `serverless package` and reads what it made: the zip files that `serverless deploy` would upload, and the
 * settings of each function from the CloudFormation template.
 *
 * @param settings what serverless.yml takes from the environment
 */
export async function packageFunctions(
  settings: Record<string, string>,
): Promise<Record<string, PackagedFunction>> {
  const directory = await mkdtemp(join(tmpdir(), 'loopless-package-'))
  try {
    const program = join(project, 'node_modules/serverless/bin/serverless.js')
    const args = ['package', '--stage', 'ci', '--package', directory]
    await promisify(execFile)(process.execPath, [program, ...args], {
      cwd: project,
      env: { ...process.env, ...settings },
    })
    const template = JSON.parse(
      await readFile(join(directory, 'cloudformation-template-update-stack.json'), 'utf8'),
    ) as { Resources: Record<string, FunctionResource> }
    const functions: Record<string, PackagedFunction> = {}
    for (const { Type, Properties } of Object.values(template.Resources)) {
      if (Type !== 'AWS::Lambda::Function') continue
      const name = Properties.FunctionName.split('-').slice(2).join('-')
      functions[name] = await readFunction(Properties, join(directory, `${name}.zip`))
    }
    return functions
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

async function readFunction(
  { FunctionName, Handler, Timeout, MemorySize, Environment }: FunctionResource['Properties'],
  zipFile: string,
): Promise<PackagedFunction> {
  const zip = await readFile(zipFile)
  const files = unzipSync(zip)
  return {
    functionName: FunctionName,
    handler: Handler,
    environment: Environment.Variables,
    timeoutSeconds: Timeout,
    memoryMb: MemorySize,
    files,
    zipBytes: zip.length,
    codeBytes: files[`${Handler.split('.')[0]}.cjs`]?.length ?? 0,
  }
}
