import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['{src,functions,tests}/**/*.test.ts'],
    globalSetup: './tests/support/global-setup.ts',
    pool: 'forks',
    maxWorkers: 4, // most of the time goes by in servers and child processes
    // Bounds a hang, not the speed of a machine.
    testTimeout: 180_000,
    hookTimeout: 180_000,
  },
})
