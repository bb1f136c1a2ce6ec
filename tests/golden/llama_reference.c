/* llama.cpp reference: tokenise texts, dump logits of id lists, generate greedily.
 * llref LIBS MODEL tok < texts separated by NUL  -> JSON-ish lines of ids
 * llref LIBS MODEL logits < lines of ids -> raw f32 for each line [n,V] to stdout
 * llref LIBS MODEL greedy N < lines of ids -> line: ids | gaps top1-top2 */
#include "llama.h"
#include "ggml-backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void quiet(enum ggml_log_level l,const char*t,void*u){ if(l>=GGML_LOG_LEVEL_ERROR) fputs(t,stderr);}
static char*readall(size_t*n){size_t cap=1<<20,len=0;char*b=malloc(cap);size_t k;while((k=fread(b+len,1,cap-len,stdin))>0){len+=k;if(len==cap)b=realloc(b,cap*=2);}*n=len;return b;}
int main(int c,char**v){
  llama_log_set(quiet,0); ggml_backend_load_all_from_path(v[1]); llama_backend_init();
  struct llama_model_params mp=llama_model_default_params(); mp.n_gpu_layers=0; int vocab_only=!strcmp(v[3],"tok"); mp.vocab_only=vocab_only;
  struct llama_model*m=llama_model_load_from_file(v[2],mp); if(!m) return 2;
  const struct llama_vocab*vo=llama_model_get_vocab(m); int V=llama_vocab_n_tokens(vo);
  size_t n; char*in=readall(&n);
  if(vocab_only){ char*p=in; while(p<in+n){ size_t l=strnlen(p,in+n-p); int k=-llama_tokenize(vo,p,l,0,0,0,0); llama_token*t=malloc(4*(k+1)); llama_tokenize(vo,p,l,t,k,0,0); for(int i=0;i<k;i++) printf("%d ",t[i]); printf("\n"); free(t); p+=l+1;} return 0;}
  in=realloc(in,n+1); in[n]=0;
  int ngen=!strcmp(v[3],"greedy")?atoi(v[4]):0;
  char*line=strtok(in,"\n");
  while(line){ llama_token t[4096]; int k=0; char*e; for(char*q=line;;){ long x=strtol(q,&e,10); if(e==q)break; t[k++]=x; q=e; }
    struct llama_context_params cp=llama_context_default_params(); cp.n_ctx=1024;cp.n_batch=1024;cp.n_ubatch=1024;cp.n_threads=cp.n_threads_batch=2; cp.type_k=GGML_TYPE_F32;cp.type_v=GGML_TYPE_F32; cp.flash_attn_type=LLAMA_FLASH_ATTN_TYPE_DISABLED;
    struct llama_context*x=llama_init_from_model(m,cp); if(!x) return 3;
    struct llama_batch b=llama_batch_init(1024,0,1); b.n_tokens=k; for(int i=0;i<k;i++){b.token[i]=t[i];b.pos[i]=i;b.n_seq_id[i]=1;b.seq_id[i][0]=0;b.logits[i]=ngen?(i==k-1):1;}
    if(llama_decode(x,b)) return 4;
    if(!ngen){ for(int i=0;i<k;i++) fwrite(llama_get_logits_ith(x,i),4,V,stdout); }
    else { for(int g=0;g<ngen;g++){ float*lg=llama_get_logits_ith(x,g?0:k-1); int a=0; for(int i=1;i<V;i++) if(lg[i]>lg[a]) a=i; float s=-1e30; int a2=-1; for(int i=0;i<V;i++) if(i!=a&&lg[i]>s){s=lg[i];a2=i;} printf("%d:%d:%.6f ",a,a2,lg[a]-s); b.n_tokens=1;b.token[0]=a;b.pos[0]=k+g;b.n_seq_id[0]=1;b.seq_id[0][0]=0;b.logits[0]=1; if(g<ngen-1&&llama_decode(x,b)) return 5; } printf("\n"); fflush(stdout);}
    llama_batch_free(b); llama_free(x); line=strtok(0,"\n"); }
  return 0; }
