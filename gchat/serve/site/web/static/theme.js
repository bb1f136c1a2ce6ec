/* built from src/ 42e77dd9f66fedaa */
"use strict";(()=>{var t=(()=>{try{return localStorage.getItem("theme")}catch{return null}})();(t==="dark"||t==="light")&&(document.documentElement.dataset.theme=t);})();
