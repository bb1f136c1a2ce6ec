/* built from src/ cdab7ee75e24239e */
"use strict";(()=>{var t=(()=>{try{return localStorage.getItem("theme")}catch{return null}})();(t==="dark"||t==="light")&&(document.documentElement.dataset.theme=t);})();
