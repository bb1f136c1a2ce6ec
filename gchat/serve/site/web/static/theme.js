/* built from src/ 9c8cda44d266392a */
"use strict";(()=>{var t=(()=>{try{return localStorage.getItem("theme")}catch{return null}})();(t==="dark"||t==="light")&&(document.documentElement.dataset.theme=t);})();
