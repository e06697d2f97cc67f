import { defineConfig } from 'vitest/config'
import { certificatesSource } from '../infra/build/rds-certificates.mjs'

const certificates = 'loopless:rds-certificates'

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
    include: ['{src,functions,infra,tests}/**/*.test.ts'],
    exclude: ['tests/runtime/**', 'tests/localstack/**'], // lanes of their own
    globalSetup: './tests/support/global-setup.ts',
    pool: 'forks',
    maxWorkers: 4, // most of the time goes by in servers and child processes
    // Bounds a hang, not the speed of a machine.
    testTimeout: 180_000,
    hookTimeout: 180_000,
  },
})
