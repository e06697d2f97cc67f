// Runs the tests that lean on chance for longer: npm run torture -- [seconds for each, default 60]

import { startVitest } from 'vitest/node'

process.env['TORTURE_SECONDS'] = process.argv[2] ?? '60'
await startVitest(
  'test',
  ['tests/claim-torture', 'tests/server-crash', 'tests/model', 'tests/database-faults', 'tests/wake-torture'],
  {
    config: 'tests/vitest.config.ts',
    run: true,
    fileParallelism: false,
  },
)
