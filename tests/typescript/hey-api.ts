import { createClient } from "./hey-api/client/index.js";
import { getCase, listCases, summarizeCases, type Case, type PageOfPartialCases } from "./hey-api/index.js";

declare const process: { env: Record<string, string> };

const { SERVICE, API_TOKEN, JWT, ORGANIZATION_ID } = process.env as {
    [name in "SERVICE" | "API_TOKEN" | "JWT" | "ORGANIZATION_ID"]: string;
};
const headers = { Authorization: `Token ${API_TOKEN}`, "X-External-Identity": JWT };
const client = createClient({ baseUrl: SERVICE, headers });
const path = { organization_id: ORGANIZATION_ID, external_id_jwt_token: "-" };

function line(one: Case): string {
    return `${one.case_number} ${one.status} ${one.contact.id} ${one.owner?.full_name ?? "nobody"}`;
}

const list = await listCases({ client, path, query: { status: ["Open", "Pending"], page_size: 10 } });
if (!list.data) throw new Error(`${list.error.status} ${list.error.code}`);
console.log(list.data.results.map(line).join("\n"));

const narrow = await listCases({ client, path, query: { fields: ["case_number", "status"] } });
for (const one of (narrow.data as PageOfPartialCases | undefined)?.results ?? []) {
    // @ts-expect-error  `fields` may have left it out.
    const subject: string | null = one.subject;
    console.log(Object.keys(one).join(), subject ?? "without");
}

const summary = await summarizeCases({ client, path });
if (!summary.data) throw new Error(summary.error.code);
console.log(summary.data.total + summary.data.by_status.Open);

const missing = await getCase({ client, path: { ...path, case_id: ORGANIZATION_ID } });
console.log(missing.error?.status, missing.error?.code);
