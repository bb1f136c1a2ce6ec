// What the server says; gchat/serve/site writes it.
export interface Source { n: number; title: string; url: string }
export interface Message {
  id: string; parent: string | null; role: "user" | "assistant" | "system"; content: string; html: string;
  status: "streaming" | "done" | "stopped" | "failed"; error?: string | null; created_at: number; tokens: number | null;
  sources: Source[] | null; rating: number; siblings: string[];
}
export interface Context { used: number; limit: number; dropped_before: string | null }
export interface Sampling { temperature?: number; top_p?: number; top_k?: number; max_tokens?: number }
export interface Conversation {
  id: string; title: string; pinned: boolean; updated_at: number; system?: string | null; sampling?: Sampling | null;
  model?: string | null; share?: string | null; leaf: string | null; messages: Message[]; context: Context | null;
}
export interface Change { from: number; keep: number; html: string[] }
export type ChatEvent =
  | { event: "start"; data: { conversationId: string; userMessage: Message | null; message: Message } }
  | { event: "delta"; data: Change & { text: string; n: number } }
  | { event: "sources"; data: Source[] }
  | { event: "end"; data: { message: Message; context?: Context } }
  | { event: "error"; data: { message: string; saved?: Message } };
export interface Me {
  name: string; role: string; quota: number | null; used?: number;
  settings: { default_model?: string; system?: string; sampling?: Sampling };
}
export interface Model { id: string; context: number; default?: boolean }
