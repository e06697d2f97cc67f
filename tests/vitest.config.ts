import { defineConfig } from 'vitest/config'
import { certificatesSource } from '../infra/build/rds-certificates.mjs'

const certificates = 'loopless:rds-certificates'

/** Tests that start whole programs, for tens of seconds each: `npm run test:system`. */
const systemTests = [
  'database-access',
  'deploy',
  'offline',
  'package',
  'policies',
  'pooler',
  'restore',
  'serverless',
  'start',
  'upgrade',
  'wake-torture',
].map((name) => `tests/${name}.test.ts`)
const isSystem = process.env['npm_lifecycle_event'] === 'test:system'

export default defineConfig({
  plugins: [
    {
      // as in the bundles, where the build makes it
      name: certificates,
      resolveId: (id) => (id === certificates ? `\0${certificates}` : undefined),
      load: (id) => (id === `\0${certificates}` ? certificatesSource() : undefined),
    },
  ],
  test: {
    include: isSystem ? systemTests : ['{src,functions,infra,tests}/**/*.test.ts'],
    exclude: [
      'tests/runtime/**',
      'tests/localstack/**',
      ...(process.env['npm_lifecycle_event'] === 'test' ? systemTests : []),
    ], // lanes of their own
    globalSetup: './tests/support/global-setup.ts',
    pool: 'forks',
    maxWorkers: 4, // most of the time goes by in servers and child processes
    // Bounds a hang, not the speed of a machine.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 60_000, interval: 20 } },
  },
})
