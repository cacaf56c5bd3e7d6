# A web application for puma, instrumented with prometheus-client-mmap, that counts what
# shop.py does.
require 'prometheus/client'

registry = Prometheus::Client.registry
requests = registry.counter(:shop_requests_total, 'Requests answered.')
orders = registry.counter(:shop_orders_total, 'Orders by item and size.')
latency = registry.histogram(:shop_latency_seconds, 'Time to answer.')
amount = registry.histogram(:shop_amount_euros, 'Amounts.', {}, [1, 2.5, 5, 10, 250, 1e6])
bytes = registry.summary(:shop_bytes, 'Bytes by item.')
items = ['tea', "cr\u00e8me br\u00fbl\u00e9e", 'a "quoted" one', 'back\\slash', "two\nlines", '']

run(lambda do |env|
  if (path = env['PATH_INFO'].match(%r{\A/order/(\d+)\z}))
    n = path[1].to_i
    item = items[n % items.size]
    orders.increment({ item: item, size: n % 3 }, 1 + n % 4 / 8.0)
    latency.observe({ item: item }, n % 64 / 8.0)
    amount.observe({}, n % 1024 / 2.0)
    bytes.observe({ item: item }, n % 4096)
    requests.increment
  end
  [200, { 'content-type' => 'application/json' }, ["{\"pid\":#{Process.pid}}\n"]]
end)
