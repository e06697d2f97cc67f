import { defineConfig } from 'vitest/config'

/** `npm run test:localstack`: the project as it is deployed, on an emulated AWS. */
export default defineConfig({
  test: {
    include: ['tests/localstack/**/*.test.ts'],
    globalSetup: ['./tests/support/global-setup.ts', './tests/support/localstack.ts'],
    pool: 'forks',
    fileParallelism: false,
    disableConsoleIntercept: true, // its figures as they are
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
})
