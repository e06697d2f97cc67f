// Which way imports may point, for dependency-cruiser: `npm run check:layers`.

/**
 * The stages in the order of the flow; each may import those before it. What is not named here (event, handler,
 * errors, db and what a stage is made of) lies below them all.
 */
const stages = [
  'backoff',
  'recover',
  'claim',
  'handle',
  'settle',
  'settle-step',
  'run-step',
  'poll',
  'idle',
  'drain',
  'attend',
]

/** @param {string[]} names */
const sourceOf = (names) => `^src/(${names.join('|')})\\.ts$`

/** @type {import('dependency-cruiser').IForbiddenRuleType[]} */
const stageRules = stages.slice(0, -1).map((stage, place) => ({
  name: `${stage}-imports-no-later-stage`,
  severity: 'error',
  comment:
    'The flow reads one way: attend → drain → poll → recover, claim, handle, settle; settle → backoff.',
  from: { path: sourceOf([stage]) },
  to: {
    path: sourceOf(stages.slice(place + 1)),
    reachable: true,
  },
}))

/** @type {import('dependency-cruiser').IForbiddenRuleType[]} */
const rules = [
  {
    name: 'no-circular',
    severity: 'error',
    from: {},
    to: { circular: true },
  },
  {
    name: 'no-unresolvable',
    severity: 'error',
    from: {},
    // The handlers of a build are a module that esbuild.config.mjs makes.
    to: { couldNotResolve: true, pathNot: '^loopless:' },
  },
  {
    name: 'src-is-below-everything',
    severity: 'error',
    comment: 'The library knows nothing of what uses it; only the migration runner reads infra, as files.',
    from: { path: '^src/', pathNot: '\\.test\\.ts$' },
    to: { path: '^(functions|infra|tests|bench|esbuild\\.config\\.mjs)' },
  },
  {
    name: 'tests-beside-src-use-tests-support',
    severity: 'error',
    from: { path: '^src/.*\\.test\\.ts$' },
    to: { path: '^(functions|infra|bench)/' },
  },
  {
    name: 'cli-and-console-are-on-top-of-the-library',
    severity: 'error',
    from: { path: '^src/', pathNot: '^src/(cli|console)/' },
    to: { path: '^src/(cli|console)/' },
  },
  {
    name: 'nothing-below-imports-the-public-surface',
    severity: 'error',
    comment: 'src/index.ts is for users; inside src import the module itself.',
    from: { path: '^src/', pathNot: '\\.test\\.ts$' },
    to: { path: '^src/index\\.ts$' },
  },
  {
    name: 'definitions-are-below-the-stages',
    severity: 'error',
    from: { path: '^src/(event|handler|errors|db/[^/]+)\\.ts$', pathNot: '\\.test\\.ts$' },
    to: { path: sourceOf(stages), reachable: true },
  },
  {
    name: 'functions-use-the-public-surface',
    severity: 'error',
    from: { path: '^functions/', pathNot: '\\.test\\.ts$' },
    to: { path: '^(src|infra|tests|bench)/', pathNot: '^src/index\\.ts$' },
  },
  {
    name: 'tests-are-imported-by-tests-only',
    severity: 'error',
    from: { path: '^(functions|src|infra)/', pathNot: '\\.test\\.ts$' },
    to: { path: '^(tests|bench)/|\\.test\\.ts$' },
  },
  {
    name: 'infra-is-imported-by-tests-and-bench-only',
    severity: 'error',
    from: { pathNot: '^(infra|tests|bench)/|^esbuild\\.config\\.mjs$' },
    to: { path: '^infra/' },
  },
  ...stageRules,
]

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: rules,
  options: {
    doNotFollow: { path: 'node_modules' },
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default', 'types'],
    },
  },
}
