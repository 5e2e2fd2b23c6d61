// What the page asks the server by HTTP: the model, and whether one may come in.

import { $, say, show } from "./dom.js";

/** Why a request was refused, in the server's words. */
export async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** The model that the server runs; asks for the key first where one is wanted. Throws if there is no connection. */
export async function model() {
  for (;;) {
    const response = await fetch("/v1/models");
    if (response.ok) return (await response.json()).data[0];
    if (response.status !== 401 && response.status !== 403) throw new Error(await reason(response));
    await login();
  }
}

/** The roles of the model's heads, if the server knows them before a video. */
export async function headMap() {
  const response = await fetch("/v1/heads");
  return response.ok ? (await response.json()).roles : null;
}

/** Whether the server can be reached, and wants a key that the browser does not have. */
export async function wantsKey() {
  try {
    return (await fetch("/v1/models")).status === 401;
  } catch {
    return false;
  }
}

/** Shows the form for the key until it is right. */
export function login() {
  const dialog = $("login");
  if (!dialog.open) dialog.showModal();
  dialog.oncancel = (event) => event.preventDefault(); // there is nothing to see without one
  return new Promise((done) => {
    $("login-form").onsubmit = async (event) => {
      event.preventDefault();
      const problem = await enter($("login-key").value);
      say($("login-problem"), problem);
      show($("login-problem"), Boolean(problem));
      if (problem) return $("login-key").select();
      $("login-key").value = "";
      dialog.close();
      done();
    };
  });
}

async function enter(key) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("/login", { method: "POST", headers, body: JSON.stringify({ key }) });
    return response.ok ? "" : await reason(response);
  } catch {
    return "No connection to the server. Is it running?";
  }
}
