/* built from src/ edb73ee04ce59c86 */
"use strict";(()=>{var t=(()=>{try{return localStorage.getItem("theme")}catch{return null}})();(t==="dark"||t==="light")&&(document.documentElement.dataset.theme=t);})();
