import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['{src,functions,tests}/**/*.test.ts'],
    globalSetup: './tests/support/global-setup.ts',
    pool: 'forks',
    maxWorkers: 4, // most of the time goes by in servers and child processes
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
