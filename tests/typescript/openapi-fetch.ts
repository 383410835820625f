import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string> };

const { SERVICE, API_TOKEN, JWT, ORGANIZATION_ID } = process.env as {
    [name in "SERVICE" | "API_TOKEN" | "JWT" | "ORGANIZATION_ID"]: string;
};
const CASES = "/api/v5/orgs/{organization_id}/external-visitors/{external_id_jwt_token}/cases";
const headers = { Authorization: `Token ${API_TOKEN}`, "X-External-Identity": JWT };
const client = createClient<paths>({ baseUrl: SERVICE, headers });
const path = { organization_id: ORGANIZATION_ID, external_id_jwt_token: "-" };

function line(one: components["schemas"]["Case"]): string {
    return `${one.case_number} ${one.status} ${one.contact.id} ${one.owner?.full_name ?? "nobody"}`;
}

const list = await client.GET(CASES, { params: { path, query: { status: ["Open", "Pending"], page_size: 10 } } });
if (list.error) throw new Error(`${list.error.status} ${list.error.code}`);
console.log(list.data.results.map(line).join("\n"));

const narrow = await client.GET(CASES, { params: { path, query: { fields: ["case_number", "status"] } } });
const page = narrow.data as components["schemas"]["PageOfPartialCases"] | undefined;
for (const one of page?.results ?? []) {
    // @ts-expect-error  `fields` may have left it out.
    const subject: string | null = one.subject;
    console.log(Object.keys(one).join(), subject ?? "without");
}

const summary = await client.GET(`${CASES}/summary`, { params: { path } });
if (summary.error) throw new Error(summary.error.code);
console.log(summary.data.total + summary.data.by_status.Open);

const missing = await client.GET(`${CASES}/{case_id}`, { params: { path: { ...path, case_id: ORGANIZATION_ID } } });
console.log(missing.error?.status, missing.error?.code);
