/** How long each test that leans on chance goes on under `npm run torture`; null in `npm test`. */
export const tortureSeconds: number | null = Number(process.env['TORTURE_SECONDS']) || null
