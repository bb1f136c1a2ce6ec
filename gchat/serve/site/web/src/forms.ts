// Forms: values out of fields, errors beside them.
import { Refused } from "./api.ts";

export type Values = Record<string, string>;

/** Sends a form by `act`; the field that the server names is marked and gets the focus. */
export function formOf(form: HTMLFormElement, act: (values: Values) => Promise<void>): void {
  const problem = form.querySelector<HTMLElement>(".problem")!;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const values: Values = {};
    for (const [name, value] of new FormData(form)) if (typeof value === "string") values[name] = value;
    const button = form.querySelector<HTMLButtonElement>("button:not([type=button])")!;
    button.disabled = true;
    problem.textContent = "";
    form.querySelectorAll("[aria-invalid]").forEach((node) => node.removeAttribute("aria-invalid"));
    try {
      await act(values);
    } catch (error) {
      problem.textContent = (error as Error).message;
      const field = error instanceof Refused && error.field ? form.elements.namedItem(error.field) : null;
      if (field instanceof HTMLElement) {
        field.setAttribute("aria-invalid", "true");
        field.focus();
      }
    } finally {
      button.disabled = false;
    }
  });
}

/** The fields that hold a number; those left empty are left to the model. */
export function numbers(values: Values, names: string[]): Record<string, number> {
  return Object.fromEntries(names.filter((name) => values[name]?.trim()).map((name) => [name, Number(values[name])]));
}
