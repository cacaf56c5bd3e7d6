# A Rack application that counts its requests. There is no exporter in it.
require 'prometheus/client'

registry = Prometheus::Client.registry
requests = registry.counter(:example_requests_total, 'Requests answered.')
latency = registry.histogram(:example_latency_seconds, 'Time to answer.')

run(lambda do |env|
  began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  requests.increment(path: env['PATH_INFO'])
  latency.observe({}, Process.clock_gettime(Process::CLOCK_MONOTONIC) - began)
  [200, { 'content-type' => 'text/plain' }, ["hello\n"]]
end)
