import { type CreatedRole, createRoles, type Sql } from '../../src/index.ts'
import type { Environment } from '../edge/setting.ts'

/**
 * Creates the roles that the functions sign in as. When they do so by token (FUNCTIONS_AUTH=iam), the roles may, where
 * there is RDS: a stand-in for it has no rds_iam.
 * @throws RoleError
 */
export async function prepareRoles(sql: Sql, environment: Environment): Promise<CreatedRole[]> {
  const [row] = await sql<{ now: Date; hasTokens: boolean }[]>`
    select clock_timestamp() as now, to_regrole('rds_iam') is not null as "hasTokens"`
  const { POLLER_ROLE: poller, PUBLISHER_ROLE: publisher, VIEWER_ROLE: viewer } = environment
  return createRoles(sql, {
    now: row?.now ?? new Date(),
    names: { ...(poller && { poller }), ...(publisher && { publisher }), ...(viewer && { viewer }) },
    withTokens: environment['FUNCTIONS_AUTH'] === 'iam' && row?.hasTokens === true,
  })
}
