// As asyncio_ticker.py: node node_ticker.js HOST PORT N
const net = require('net');
const [host, port, n] = process.argv.slice(-3);
function one(i) {
  return new Promise((ok, bad) => {
    let data = '';
    const s = net.connect({ host, port: +port });
    s.on('connect', () => s.write(`GET /${i} HTTP/1.0\r\n\r\n`));
    s.on('data', (d) => { data += d; });
    s.on('end', () => ok(data.includes('200 OK')));
    s.on('error', bad);
  });
}
let last = performance.now();
let worst = 0;
const begun = last;
const ticker = setInterval(() => {
  const now = performance.now();
  worst = Math.max(worst, now - last);
  last = now;
}, 10);
Promise.allSettled([...Array(+n).keys()].map(one)).then((all) => {
  for (const r of all) if (r.status !== 'fulfilled') console.error(r.reason);
  console.log(all.filter((r) => r.value === true).length, Math.round(worst), Math.round(performance.now() - begun));
  clearInterval(ticker);
});
