import { defineConfig } from 'vitest/config'

/** `npm run test:runtime`: what `serverless package` made, under AWS's own runtime. */
export default defineConfig({
  test: {
    include: ['tests/runtime/**/*.test.ts'],
    globalSetup: './tests/support/global-setup.ts',
    pool: 'forks',
    disableConsoleIntercept: true, // its table of figures as it is
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})
