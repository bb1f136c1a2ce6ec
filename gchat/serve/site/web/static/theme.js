/* built from src/ 71e2463540e30307 */
"use strict";(()=>{var t=(()=>{try{return localStorage.getItem("theme")}catch{return null}})();(t==="dark"||t==="light")&&(document.documentElement.dataset.theme=t);})();
